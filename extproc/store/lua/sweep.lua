-- Close reservations whose settlement never came. KEYS[1]: the tenant's prefix. ARGV: ledger entries to keep, age in
-- ms, how many at most. They stay charged as reserved; the tokens count as prompt tokens, status 0, estimated.
-- Returns how many were closed; as many as allowed means: there may be more.
local MARKER_MS = 86400000  -- a settlement that comes after all is a duplicate for a day

local now = clock()
local day = day_of(now)
local prefix = KEYS[1]
local old = redis.call('ZRANGEBYSCORE', prefix .. 'reserved:at', '-inf', now - ARGV[2], 'LIMIT', 0, ARGV[3])
for _, request_id in ipairs(old) do
  local reserved = unreserve(prefix, request_id)
  redis.call('ZREM', prefix .. 'reserved:at', request_id)
  if reserved then
    redis.call('SET', prefix .. 'settled:' .. request_id, '', 'PX', MARKER_MS)
    record(prefix, day, {
      request_id = request_id, user = reserved[1], key_id = reserved[2], model = '', arm = '', endpoint = '',
      status = 0, prompt_tokens = reserved[3], completion_tokens = 0, cached_tokens = 0, cost_micros = reserved[4],
      hit = false, estimated = true,
    }, ARGV[1])
  end
end
return #old
