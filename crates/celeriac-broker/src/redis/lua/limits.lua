-- Carries orders about limits out, one after the other, by the server's clock. What it decides is
-- what `limit/ledger.rs` decides, which says why.
--
-- A limit is a hash (due, begun, look, held) and a sorted set of holders by the end of their leases; a
-- claim is a hash (owner, until). All moments are microseconds since 1970. Each key expires when it
-- says nothing any more.
--
-- KEYS: the hash and the sorted set of each limit, and twice the hash of each claim.
-- ARGV: the orders as JSON, which name keys by their places; constants as JSON.
-- Returns for each order that asks: {'granted'}, {'duplicate', of}, or {'denied', wait, turn or ''}.

local orders, constants = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function text(number)
  return string.format('%.0f', number)
end

local function get(key, field)
  return tonumber(redis.call('HGET', key, field) or 0)
end

local function set(key, field, value)
  redis.call('HSET', key, field, text(value))
end

-- A key says something until then: it is never forgotten before.
local function keep(key, moment)
  local wait = math.ceil((moment - now) / 1000) + 1000
  if redis.call('PTTL', key) < wait then redis.call('PEXPIRE', key, text(wait)) end
end

local function lease(place, holder)
  local slots = KEYS[place + 1]
  redis.call('ZADD', slots, text(now + constants.lease), holder)
  keep(slots, now + constants.lease)
end

local function other(key, owner)
  local of = redis.call('HGET', key, 'owner')
  if of and of ~= owner and get(key, 'until') > now then return of end
end

local function claim(wanted, moment)
  local key = KEYS[wanted.key]
  local is_kept = redis.call('HGET', key, 'owner') == wanted.owner and get(key, 'until') > now
  if wanted.window and is_kept then return end
  redis.call('HSET', key, 'owner', wanted.owner)
  set(key, 'until', moment)
  keep(key, moment)
end

-- When to look again, if any of the slots is not free.
local function look_for_slots(asked)
  local look
  for _, permit in ipairs(asked.permits) do
    if permit.slots then
      local key, slots = KEYS[permit.key], KEYS[permit.key + 1]
      redis.call('ZREMRANGEBYSCORE', slots, '-inf', text(now))
      local has = redis.call('ZSCORE', slots, asked.holder)
      if not has and redis.call('ZCARD', slots) >= permit.slots then
        local held = get(key, 'held')
        if held == 0 then held = constants.unknown_hold end
        local apart = math.max(math.floor(held * 4 / 5 / math.max(permit.slots, 1)), 1000)
        local line = get(key, 'look')
        if line > now + constants.farthest_look then line = now + constants.farthest_look / 2 end
        line = math.max(line, now + constants.first_look) + apart
        set(key, 'look', line)
        keep(key, line)
        look = math.max(look or 0, line)
      end
    end
  end
  return look
end

local function denied(moment, turn)
  return {'denied', text(math.max(moment - now, 0)), turn and text(turn) or ''}
end

local function permit(asked)
  local has_rate, at, is_free = false, now, true
  for _, limit in ipairs(asked.permits) do
    if limit.interval then
      local key, ahead = KEYS[limit.key], limit.interval * (limit.burst - 1)
      has_rate = true
      at = math.max(at, get(key, 'due') - ahead)
      is_free = is_free and get(key, 'begun') - ahead <= now
    end
  end
  local turn = asked.turn
  if turn and turn > now and has_rate then return denied(turn, turn) end
  local look = look_for_slots(asked)
  if look then return denied(look, turn and look <= turn + constants.grace and turn or nil) end
  local is_late = turn and turn < now - constants.grace
  if not turn or is_late and (at <= now or not is_free) then
    if at > now + constants.farthest_turn then return denied(now + constants.farthest_turn) end
    for _, limit in ipairs(asked.permits) do
      if limit.interval then
        local key = KEYS[limit.key]
        local due = math.max(get(key, 'due'), now) + limit.interval
        set(key, 'due', due)
        keep(key, due)
      end
    end
    if at > now then return denied(at, at) end
  end
  for _, limit in ipairs(asked.permits) do
    if limit.interval then
      local key = KEYS[limit.key]
      local begun = math.max(get(key, 'begun'), now) + limit.interval
      set(key, 'begun', begun)
      keep(key, begun)
    end
  end
  for _, limit in ipairs(asked.permits) do
    if limit.slots then lease(limit.key, asked.holder) end
  end
  return {'granted'}
end

local function acquire(asked)
  local wanted = asked.claim
  if not wanted then return permit(asked) end
  local of = other(KEYS[wanted.key], wanted.owner)
  if of then return {'duplicate', of} end
  local answer = permit(asked)
  local wait = 0
  if answer[1] == 'denied' and not wanted.window then wait = tonumber(answer[2]) end
  claim(wanted, now + wait + wanted.lasts)
  return answer
end

local function renew(holding)
  for _, place in ipairs(holding.slots) do lease(place, holding.holder) end
  local wanted = holding.claim
  if wanted and not wanted.window and not other(KEYS[wanted.key], wanted.owner) then
    claim(wanted, now + wanted.lasts)
  end
end

local function release(holding)
  for _, place in ipairs(holding.slots) do
    local had = redis.call('ZREM', KEYS[place + 1], holding.holder) == 1
    if had and holding.held > 0 then
      local known, held = get(KEYS[place], 'held'), holding.held
      if known > 0 then held = math.floor((known * 4 + held) / 5) end
      set(KEYS[place], 'held', held)
      keep(KEYS[place], now + constants.lease)
    end
  end
  local wanted = holding.claim
  if wanted and not wanted.window then
    local key = KEYS[wanted.key]
    if redis.call('HGET', key, 'owner') == wanted.owner then
      if wanted.lasts == 0 then
        redis.call('DEL', key)
      else
        set(key, 'until', now + wanted.lasts)
        keep(key, now + wanted.lasts)
      end
    end
  end
end

local answers = {}
for _, order in ipairs(orders) do
  if order.acquire then
    answers[#answers + 1] = acquire(order.acquire)
  elseif order.renew then
    renew(order.renew)
  else
    release(order.release)
  end
end
return answers
