-- Puts dead letters back into lists, to be consumed last, each only if it is still kept.
--
-- KEYS: the records, their ids by the moment of their death, then the list of each letter.
-- ARGV: for each letter its id and what to put into the list.
-- Returns how many were put back.

local records, index = KEYS[1], KEYS[2]
local count = 0
for i = 1, #KEYS - 2 do
  local id = ARGV[2 * i - 1]
  if redis.call('HEXISTS', records, id) == 1 then
    redis.call('LPUSH', KEYS[i + 2], ARGV[2 * i])
    redis.call('HDEL', records, id)
    redis.call('ZREM', index, id)
    count = count + 1
  end
end
return count
