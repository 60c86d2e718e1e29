-- Write an API key's record if it still is what the writer read. KEYS: records, revision. ARGV: digest, the new
-- record, the expected old one ("" = whatever it is). Returns 1 when written.
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('INCR', KEYS[2])
return 1
