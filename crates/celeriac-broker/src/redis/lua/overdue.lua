-- Finds what dead workers hold: workers of celeriac that gave no sign of life while others did, and
-- tags of any worker whose visibility timeout has passed.
--
-- A sign that is old tells nothing by itself: after the server was away, all are old. What counts
-- is silence while the server was reached by somebody all the time, which the pulse tells.
--
-- KEYS: unacked_index, the set of workers, the pulse.
-- ARGV: seconds of silence that mean death; the visibility timeout in seconds; how many tags at
-- most.
-- Returns two lists: names of workers, tags.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local function before(seconds)
  return string.format('(%.6f', now - tonumber(seconds))
end
local dead = {}
local since = redis.call('HGET', KEYS[3], 'since')
if since and now - tonumber(since) >= tonumber(ARGV[1]) then
  dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before(ARGV[1]))
end
return {
  dead,
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before(ARGV[2]), 'LIMIT', 0, tonumber(ARGV[3])),
}
