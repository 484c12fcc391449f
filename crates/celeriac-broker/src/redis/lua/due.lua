-- Moves messages whose moment has come from the delay store to the ends of their lists where they
-- are consumed next, by the server's clock. Any worker may call it at any time: what one has moved
-- the next does not find.
--
-- KEYS: unacked, unacked_index.
-- ARGV: the visibility timeout in seconds; how many at most.
-- Returns how many were moved, and the milliseconds until the next one may be due, -1 for none.

local unacked, index, timeout, most = KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local due = string.format('%.6f', now - timeout)

-- Where a message of the store goes, and how much of its value's end is not itself.
local function route(tag)
  return string.match(tag, '^celeriac%-delayed:[^:]+:(%d+):(.*)$')
end

local found, offset = {}, 0
repeat
  local page = redis.call('ZRANGEBYSCORE', index, '-inf', due, 'LIMIT', offset, most)
  for _, tag in ipairs(page) do
    if route(tag) and #found < most then found[#found + 1] = tag end
  end
  -- Others' tags stand here as well, some for ever: those that lead to no queue.
  offset = offset + #page
until #page < most or #found == most or offset >= 20 * most

local moved = 0
for i = #found, 1, -1 do
  local suffix, list = route(found[i])
  local value = redis.call('HGET', unacked, found[i])
  -- A key of another type stops the script: it must not have taken anything by then.
  if value then redis.call('RPUSH', list, string.sub(value, 2, -1 - tonumber(suffix))) end
  redis.call('HDEL', unacked, found[i])
  redis.call('ZREM', index, found[i])
  moved = moved + 1
end

local next = redis.call('ZRANGEBYSCORE', index, '(' .. due, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local wait = -1
if moved == most then
  wait = 0
elseif next[2] then
  wait = math.max(0, math.ceil((tonumber(next[2]) + timeout - now) * 1000))
end
return {moved, wait}
