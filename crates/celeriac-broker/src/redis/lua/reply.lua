-- Puts a reply into the queues that are bound for it; without any it is dropped.
--
-- KEYS: the binding table of the exchange.
-- ARGV: the separator of a binding's parts, the routing key, the prefix of keys, the reply, and the
-- milliseconds after which an unread queue of replies is deleted, or 0 to leave it alone.
-- Returns in how many queues it is.

local separator, key, prefix, reply, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local count = 0
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key_end = string.find(member, separator, 1, true)
  local pattern_end = key_end and string.find(member, separator, key_end + #separator, true)
  if pattern_end and string.sub(member, 1, key_end - 1) == key then
    local list = prefix .. string.sub(member, pattern_end + #separator)
    redis.call('LPUSH', list, reply)
    if ttl > 0 then redis.call('PEXPIRE', list, ttl) end
    count = count + 1
  end
end
return count
