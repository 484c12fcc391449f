-- Deletes binding tables that were left behind, as kombu's own consumers do: those that nobody has
-- bound anything to for long, unless a queue without an end stands in them.
--
-- KEYS: the deadlines of tables.
-- ARGV: the beginnings of the names of tables and of sets of permanent bindings, and how many
-- tables to look at.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, exchange in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[3])) do
  local is_permanent = redis.call('EXISTS', ARGV[2] .. exchange) == 1
  if not is_permanent then redis.call('DEL', ARGV[1] .. exchange) end
  redis.call('ZREM', KEYS[1], exchange)
end
