-- Renews the leases of claimed messages and the sign of life of their worker.
--
-- KEYS: unacked_index, the set of workers.
-- ARGV: this worker's name, then the tags.
-- Returns the positions (from 0) of the tags that are no longer claimed.

local time = redis.call('TIME')
local score = string.format('%d.%06d', time[1], time[2])
redis.call('ZADD', KEYS[2], score, ARGV[1])
local lost = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], score, ARGV[i])
  else
    lost[#lost + 1] = i - 2
  end
end
return lost
