-- Finds what dead workers hold: workers of celeriac that gave no sign of life, and tags of any
-- worker whose visibility timeout has passed.
--
-- KEYS: unacked_index, the set of workers.
-- ARGV: seconds without a sign of life that mean death; the visibility timeout in seconds; how
-- many tags at most.
-- Returns two lists: names of workers, tags.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local function before(seconds)
  return string.format('(%.6f', now - tonumber(seconds))
end
return {
  redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before(ARGV[1])),
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before(ARGV[2]), 'LIMIT', 0, tonumber(ARGV[3])),
}
