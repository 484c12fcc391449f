-- Lists what may have been left behind: all workers of celeriac with their last signs of life, and
-- tags of any worker whose visibility timeout has passed.
--
-- KEYS: unacked_index, the set of workers.
-- ARGV: the visibility timeout in seconds; how many tags at most.
-- Returns two lists: names of workers, each followed by its sign of life; tags.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local overdue = string.format('(%.6f', now - tonumber(ARGV[1]))
return {
  redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES'),
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', overdue, 'LIMIT', 0, tonumber(ARGV[2])),
}
