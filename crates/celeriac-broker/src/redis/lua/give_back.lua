-- Puts claimed messages back into lists, each only if it is still claimed.
--
-- KEYS: unacked, unacked_index, then the list of each message.
-- ARGV: RPUSH to have them consumed next or LPUSH to have them consumed last; then for each
-- message its tag, how much of the value's end is not the message, and the message to put back, or
-- nothing to put back what was claimed. A tag that stands several times in a row goes into several
-- lists.
-- Returns how many were put back.

local unacked, index, push = KEYS[1], KEYS[2], ARGV[1]
local count = 0
local tag, value
for i = 1, #KEYS - 2 do
  local suffix, item = tonumber(ARGV[3 * i]), ARGV[3 * i + 1]
  if ARGV[3 * i - 1] ~= tag then
    tag = ARGV[3 * i - 1]
    value = redis.call('HGET', unacked, tag)
    if value then
      redis.call('HDEL', unacked, tag)
      redis.call('ZREM', index, tag)
      count = count + 1
    end
  end
  if value then
    if item == '' then item = string.sub(value, 2, -1 - suffix) end
    redis.call(push, KEYS[i + 2], item)
  end
end
return count
