-- Renews the leases of claimed messages and the sign of life of their worker.
--
-- KEYS: unacked_index, the set of workers, the pulse.
-- ARGV: this worker's name; seconds without any sign of life that interrupt the pulse; then the
-- tags.
-- Returns the positions (from 0) of the tags that are no longer claimed.

local time = redis.call('TIME')
local score = string.format('%d.%06d', time[1], time[2])
redis.call('ZADD', KEYS[2], score, ARGV[1])
-- The pulse tells since when there was always somebody who reached this server.
local last = redis.call('HGET', KEYS[3], 'last')
if not last or tonumber(score) - tonumber(last) > tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[3], 'since', score)
end
redis.call('HSET', KEYS[3], 'last', score)
redis.call('EXPIRE', KEYS[3], 60)
local lost = {}
for i = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], score, ARGV[i])
  else
    lost[#lost + 1] = i - 3
  end
end
return lost
