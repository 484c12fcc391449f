-- Counts a part of a chord once, and claims the chord if it was the last. Celery's own workers do the
-- same on the same keys.
--
-- KEYS: .j (the parts), .t (how many were added), .s (how many there are), .d (who was counted), the
--       group's document, .c (who sends the body, or 'done').
-- ARGV: the task's id, the part, 1 if parts are ordered, the part's place, seconds for the parts to
--       live, the same for the group, the same for the claim, the claim's token.
-- Answers with 1 if the chord is claimed, 0 if it is not complete or another's, -1 if it is done.
local parts, extra, size, counted, group, claim = unpack(KEYS)
local id, part, ordered, place = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl, group_ttl = tonumber(ARGV[5]), tonumber(ARGV[6])

if redis.call('GET', claim) == 'done' then
    return -1
end
-- One id may stand at two places of a header.
if redis.call('SADD', counted, id .. ':' .. place) == 1 then
    if ordered == '1' then
        redis.call('ZADD', parts, place, part)
    else
        redis.call('RPUSH', parts, part)
    end
end
if ttl > 0 then
    for _, key in ipairs({parts, extra, size, counted}) do
        redis.call('EXPIRE', key, ttl)
    end
    if group_ttl > 0 then
        redis.call('EXPIRE', group, group_ttl)
    end
end
local ended
if ordered == '1' then
    ended = redis.call('ZCARD', parts)
else
    ended = redis.call('LLEN', parts)
end
local all = redis.call('GET', size)
if all and ended == tonumber(all) + tonumber(redis.call('GET', extra) or 0) then
    if redis.call('SET', claim, ARGV[8], 'NX', 'EX', ARGV[7]) then
        return 1
    end
end
return 0
