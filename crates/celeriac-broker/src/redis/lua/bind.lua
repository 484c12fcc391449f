-- Binds a queue that expires: kombu's sweep keeps the table at least until the deadline.
--
-- KEYS: the binding table of the exchange, the deadlines of tables.
-- ARGV: the binding, the exchange, the milliseconds until the deadline.

redis.call('SADD', KEYS[1], ARGV[1])
local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('ZADD', KEYS[2], 'GT', deadline, ARGV[2])
