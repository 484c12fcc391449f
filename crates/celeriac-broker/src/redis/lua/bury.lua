-- Keeps a dead letter, and drops those beyond the bounds.
--
-- KEYS: the records, their ids by the moment of their death.
-- ARGV: the id, the moment in seconds since 1970, the record, the moment before which letters go,
-- how many stay at most.

local records, index = KEYS[1], KEYS[2]
redis.call('HSET', records, ARGV[1], ARGV[3])
redis.call('ZADD', index, ARGV[2], ARGV[1])

local function drop(ids)
  if #ids == 0 then return end
  redis.call('HDEL', records, unpack(ids))
  redis.call('ZREM', index, unpack(ids))
end

-- Some each time: one more than is added is enough.
drop(redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. ARGV[4], 'LIMIT', 0, 100))
local beyond = redis.call('ZCARD', index) - tonumber(ARGV[5])
if beyond > 0 then drop(redis.call('ZRANGE', index, 0, math.min(beyond, 100) - 1)) end
