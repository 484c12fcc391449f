-- Settles messages and claims new ones, in one step that no failure can cut in two.
--
-- KEYS: unacked, unacked_index, then the lists to take from: for each priority step, every queue
-- in the order in which they are to be asked.
-- ARGV: number of acks; prefix of the new tags; number of the first of them; runnable messages
-- wanted; messages wanted in all; number of queues; 1 to take from the queues in turn, 0 to empty
-- each before the next; the present as ISO 8601 text in UTC; the tags to ack; the end of a value
-- in `unacked` for each queue.
-- Returns for each message: the position of its list, its tag's number, and itself.

local unacked, index = KEYS[1], KEYS[2]
local acks = tonumber(ARGV[1])
local prefix, number = ARGV[2], tonumber(ARGV[3])
local runnable, total = tonumber(ARGV[4]), tonumber(ARGV[5])
local queues, in_turn, present = tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8]
local first_tag, first_list = 9, 3
local first_suffix = first_tag + acks

-- A key of another type stops the script here, before anything is taken: what a script has done
-- stays done when it fails later.
redis.call('HLEN', unacked)
redis.call('ZCARD', index)

if acks > 0 then
  redis.call('HDEL', unacked, unpack(ARGV, first_tag, first_suffix - 1))
  redis.call('ZREM', index, unpack(ARGV, first_tag, first_suffix - 1))
end

local found, failure = {}, nil
local time = redis.call('TIME')
local score = string.format('%d.%06d', time[1], time[2])

local moment = '^(%d%d%d%d)-(%d%d)-(%d%d)T(%d%d):(%d%d):(%d%d)'

-- The seconds between a day long ago and a moment in ISO 8601. The year begins in March, so that its
-- leap day is the last.
local function seconds(text)
  local year, month, day, hour, minute, second = string.match(text, moment)
  if not year then return nil end
  year, month = tonumber(year), tonumber(month)
  if month < 3 then year, month = year - 1, month + 12 end
  local days = 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
    + math.floor((153 * month - 457) / 5) + day
  return ((days * 24 + hour) * 60 + minute) * 60 + second
end

-- Whether a message waits for a moment in the future. Only the forms that Celery writes are looked
-- for: a message in another form counts as one that can run, so that too few are taken at worst.
local function is_held(item)
  local at, past = string.find(item, '"eta":', 1, true)
  if not at then return false end
  local eta = string.match(item, '^ ?"([^"]+)"', past + 1)
  if not eta then return false end
  if string.sub(eta, -6) == '+00:00' then return eta > present end
  -- In the app's own time zone.
  local there = seconds(eta)
  local sign, hours, minutes = string.match(eta, '([+-])(%d%d):(%d%d)$')
  if not there or not sign then return false end
  local ahead = (hours * 60 + minutes) * 60
  return there - (sign == '+' and ahead or -ahead) > seconds(present)
end

local function take(list, count)
  local items = redis.pcall('RPOP', KEYS[first_list + list], count)
  if items and items.err then
    failure = failure or items
    return 0
  end
  if not items then return 0 end
  local values, scores = {}, {}
  local suffix = ARGV[first_suffix + list % queues]
  for _, item in ipairs(items) do
    local tag = prefix .. string.format('%.0f', number)
    values[#values + 1] = tag
    values[#values + 1] = '[' .. item .. suffix
    scores[#scores + 1] = score
    scores[#scores + 1] = tag
    found[#found + 1] = list
    found[#found + 1] = number
    found[#found + 1] = item
    number = number + 1
    total = total - 1
    if not is_held(item) then runnable = runnable - 1 end
  end
  redis.call('HSET', unacked, unpack(values))
  redis.call('ZADD', index, unpack(scores))
  return #items
end

local lists = #KEYS - first_list + 1
for step = 0, lists - 1, math.max(queues, 1) do
  local took
  repeat
    took = 0
    for queue = 0, queues - 1 do
      local want = math.min(runnable, total)
      if want > 0 then
        took = took + take(step + queue, (in_turn and queues > 1) and 1 or want)
      end
    end
  until took == 0 or runnable <= 0 or total <= 0
end

if failure and #found == 0 then
  return failure
end
if runnable > 0 and total > 0 and lists > 0 then
  -- Reading the lists makes the server tell this connection of their next change.
  redis.call('EXISTS', unpack(KEYS, first_list))
end
return found
