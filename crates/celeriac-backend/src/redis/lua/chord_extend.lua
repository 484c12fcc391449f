-- Holds on to a claim while the body is sent: one's own, or one that has expired while the chord is
-- still there.
--
-- KEYS: .c, .s. ARGV: the token, seconds. Answers with 1, or with 0 if it is another's or done.
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
    return redis.call('EXPIRE', KEYS[1], ARGV[2])
end
if not holder and redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
    return 1
end
return 0
