-- Apply settlements of one tenant, each once. KEYS[1]: the tenant's prefix. ARGV[1]: the number of ledger entries
-- to keep. ARGV[2]: a list of Settlement, as msgpack, their entries taken out. ARGV[3…]: the entries of those that
-- have a fill, in order (Redis's msgpack knows no byte strings). Returns 1 for each that was the first, else 0.
local MARKER_MS = 600000  -- how long a repeated settlement is recognised
local SPENT_MS = 8640000000

local now = clock()
local day = day_of(now)
local prefix = KEYS[1]

local function charge_money(month, micros)
  if micros ~= 0 then
    local key = prefix .. 'spent:' .. month
    if redis.call('INCRBY', key, micros) == micros then redis.call('PEXPIRE', key, SPENT_MS) end
  end
end

-- The bucket of requests is not touched, so it is not refilled either: another key may have another rate.
local function charge_tokens(s, tokens)
  if tokens ~= 0 and s.limits.tokens_per_minute > 0 then
    local key = prefix .. 'user:' .. s.user
    local b = load_buckets(key, {requests_per_minute = 0, tokens_per_minute = s.limits.tokens_per_minute}, now)
    b[3] = take(b[3], tokens)
    save_buckets(key, b, s.limits)
  end
end

-- A reservation that is not there was lost with Redis's data, or never made because Redis was away: charge in full.
local function balance(s)
  local used = s.prompt_tokens + s.completion_tokens
  local reserved = unreserve(prefix, s.request_id)
  if reserved then
    if reserved[6] > 0 then charge_tokens(s, used - reserved[3]) end
    charge_money(reserved[5], s.cost_micros - reserved[4])
  elseif not s.hit then
    charge_tokens(s, used)
    charge_money(string.sub(day, 1, 7), s.cost_micros)
  end
end

local applied, entry = {}, 3
for i, s in ipairs(cmsgpack.unpack(ARGV[2])) do
  applied[i] = 0
  if s.refused then
    applied[i] = 1
    record(prefix, day, s, ARGV[1])
  elseif redis.call('SET', prefix .. 'settled:' .. s.request_id, '', 'NX', 'PX', MARKER_MS) then
    applied[i] = 1
    balance(s)
    record(prefix, day, s, ARGV[1])
    if s.fill then put(prefix, now, s.fill, ARGV[entry]) end
  end
  if s.fill then entry = entry + 1 end
end
return applied
