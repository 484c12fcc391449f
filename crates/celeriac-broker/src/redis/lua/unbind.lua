-- Deletes a queue that expires, its binding, and the table's deadline with the last binding.
--
-- KEYS: the binding table of the exchange, the deadlines of tables, the queue's list.
-- ARGV: the binding, the exchange.

redis.call('DEL', KEYS[3])
redis.call('SREM', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('ZREM', KEYS[2], ARGV[2]) end
