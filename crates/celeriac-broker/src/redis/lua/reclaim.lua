-- Claims messages anew whose claim the server has forgotten, as a replica does that had not heard
-- of it when it was promoted. Only a message that still waits can be claimed.
--
-- KEYS: unacked, unacked_index, then the list that each message was taken from.
-- ARGV: how far from the end of a list to look; then for each message its tag, itself, and the end
-- of its value in `unacked`.
-- Returns how many were claimed.

local unacked, index, reach = KEYS[1], KEYS[2], ARGV[1]
local time = redis.call('TIME')
local score = string.format('%d.%06d', time[1], time[2])
local count = 0
for i = 1, #KEYS - 2 do
  local list, tag, item, suffix = KEYS[i + 2], ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  if redis.call('HEXISTS', unacked, tag) == 0
      and redis.call('LPOS', list, item, 'RANK', -1, 'MAXLEN', reach) then
    redis.call('LREM', list, -1, item)
    redis.call('HSET', unacked, tag, '[' .. item .. suffix)
    redis.call('ZADD', index, score, tag)
    count = count + 1
  end
end
return count
