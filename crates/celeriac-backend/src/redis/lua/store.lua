-- Stores documents of tasks, and tells those who wait for them. The first SUCCESS stays.
--
-- KEYS: the documents' keys.
-- ARGV: for each of them: seconds to live (0: for ever), the document that was looked at and may be
--       replaced (or ''), and the document.
-- Answers with the places (from 0) of those keys whose document can't be understood here, and with
-- these documents: whoever can decides, and calls again.
local unknown = {}
for at, key in ipairs(KEYS) do
    local ttl = tonumber(ARGV[3 * at - 2])
    local seen = ARGV[3 * at - 1]
    local document = ARGV[3 * at]
    local written
    if ttl > 0 then
        written = redis.call('SET', key, document, 'EX', ttl, 'NX')
    else
        written = redis.call('SET', key, document, 'NX')
    end
    if not written then
        local head = redis.call('GETRANGE', key, 0, 31)
        local replaces
        if string.find(head, '^{"status": ?"') then
            replaces = not string.find(head, '^{"status": ?"SUCCESS"')
        else
            local stored = redis.call('GET', key)
            replaces = stored == seen
            if not replaces then
                table.insert(unknown, at - 1)
                table.insert(unknown, stored)
            end
        end
        if replaces then
            if ttl > 0 then
                redis.call('SETEX', key, ttl, document)
            else
                redis.call('SET', key, document)
            end
            written = true
        end
    end
    if written then
        redis.call('PUBLISH', key, document)
    end
end
return unknown
