-- What one finished request leaves behind: counters of the day and, unless it was refused, a line in the ledger.
local USAGE_MS = 34560000000  -- 400 days

-- `s` has the fields of Settlement. The counters are one hash per tenant and day (UTC): a field is the JSON array
-- [user, key, model], or [user, key, model, arm] where an arm was asked; its value the JSON array of sums in the order
-- below (one field instead of eight counters costs a third).
local function record(prefix, day, s, ledger_entries)
  local key = prefix .. 'usage:' .. day
  local group = cjson.encode(s.arm ~= '' and {s.user, s.key_id, s.model, s.arm} or {s.user, s.key_id, s.model})
  local old = redis.call('HGET', key, group)
  local sums = old and cjson.decode(old) or {0, 0, 0, 0, 0, 0, 0, 0}
  redis.call('HSET', key, group, cjson.encode({
    sums[1] + 1,
    sums[2] + (s.hit and 1 or 0),
    sums[3] + ((s.status >= 400 or s.status == 0) and 1 or 0),
    sums[4] + (s.estimated and 1 or 0),
    sums[5] + s.prompt_tokens,
    sums[6] + s.completion_tokens,
    sums[7] + s.cached_tokens,
    sums[8] + s.cost_micros,
  }))
  if not old then redis.call('PEXPIRE', key, USAGE_MS) end
  if s.refused then return end
  redis.call('XADD', prefix .. 'ledger', 'MAXLEN', '~', ledger_entries, '*', 'line', cjson.encode({
    request_id = s.request_id, user = s.user, key_id = s.key_id, model = s.model, arm = s.arm, endpoint = s.endpoint,
    status = s.status, prompt_tokens = s.prompt_tokens, completion_tokens = s.completion_tokens,
    cached_tokens = s.cached_tokens, cost_micros = s.cost_micros, hit = s.hit, estimated = s.estimated,
  }))
end

-- Take a reservation out: nil, or {user, key_id, tokens, cost_micros, month, tokens_per_minute}.
local function unreserve(prefix, request_id)
  local reserved = redis.call('HGET', prefix .. 'reserved', request_id)
  if not reserved then return nil end
  reserved = cmsgpack.unpack(reserved)
  redis.call('HDEL', prefix .. 'reserved', request_id)
  redis.call('ZREM', prefix .. 'reserved:at', request_id)
  redis.call('ZREM', prefix .. 'flight:' .. reserved[2] .. ':' .. reserved[1], request_id)
  return reserved
end
