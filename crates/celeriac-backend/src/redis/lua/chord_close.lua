-- Deletes a chord whose body was sent, and leaves a mark so that a late copy of a part opens none.
--
-- KEYS: .c, .j, .t, .s, .d. ARGV: the token, seconds for the mark. Answers with 1, or with 0 if
-- another has claimed it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('SET', KEYS[1], 'done', 'EX', ARGV[2])
return 1
