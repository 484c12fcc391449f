-- Puts claimed messages into the delay store, each only if it is still claimed.
--
-- The store is kombu's own: a message stands in `unacked` under a tag that tells where it goes, with
-- the score at which its visibility timeout passes in its moment. So any worker of Celery's brings
-- it back as well, should no other be left.
--
-- KEYS: unacked, unacked_index.
-- ARGV: the visibility timeout in seconds; then for each message its tag, its tag in the store, its
-- moment in seconds since 1970, and its value in `unacked`.
-- Returns how many were put.

local unacked, index, timeout = KEYS[1], KEYS[2], tonumber(ARGV[1])
local time = redis.call('TIME')
-- A worker whose clock is behind would be given at once what it has just stored, over and over.
local soonest = tonumber(time[1]) + tonumber(time[2]) / 1000000 + 1
local count = 0
for i = 2, #ARGV, 4 do
  local tag, stored, moment, value = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if redis.call('HDEL', unacked, tag) == 1 then
    redis.call('ZREM', index, tag)
    redis.call('HSET', unacked, stored, value)
    redis.call('ZADD', index, string.format('%.6f', math.max(moment, soonest) - timeout), stored)
    count = count + 1
  end
end
return count
