-- Decide on one claim and charge it. KEYS[1]: the tenant's prefix. ARGV[1]: Claim, as msgpack.
-- Everything is checked before anything is charged; a refusal charges nothing.
-- Returns {outcome, retry_after_ms, missing requests, missing tokens[, cache record, age_ms]}; the caller makes the
-- levels of it, which costs Redis nothing.
local HIT, REQUESTS, TOKENS, BUDGET, IN_FLIGHT, FULL = 1, 2, 3, 4, 5, 6
local FLIGHT_MS = 3600000     -- a slot that was never given back frees itself
local FLIGHT_RETRY_MS = 1000  -- when a slot gets free cannot be known
local FULL_RETRY_MS = 2000    -- callers come back as spread out as they came
local SPENT_MS = 8640000000   -- 100 days: a settlement may come after its month has ended

local now = clock()
local claim = cmsgpack.unpack(ARGV[1])
local limits = claim.limits
local prefix = KEYS[1]
local user_key = prefix .. 'user:' .. claim.user
local b = load_buckets(user_key, limits, now)

local outcome, wait = 0, 0
local function refuse(why, ms)
  if ms > wait then outcome, wait = why, ms end
end

local function charge(tokens)
  if limits.requests_per_minute > 0 then b[1] = take(b[1], 1) end
  if limits.tokens_per_minute > 0 then b[3] = take(b[3], tokens) end
  if limits.requests_per_minute > 0 or limits.tokens_per_minute > 0 then save_buckets(user_key, b, limits) end
end

if limits.requests_per_minute > 0 then
  refuse(REQUESTS, wait_ms(b[1], 1, limits.requests_per_minute, limits.burst_requests))
end

if claim.fingerprint ~= '' then
  local record = redis.call('GET', prefix .. 'cache:' .. claim.fingerprint)
  if record and now < tonumber(string.sub(record, 14, 26)) then
    if outcome > 0 then return {outcome, wait, b[1], b[3]} end
    charge(0)
    return {HIT, 0, b[1], b[3], record, math.max(0, now - tonumber(string.sub(record, 1, 13)))}
  end
end

if claim.cached_only then refuse(FULL, FULL_RETRY_MS) end

if limits.tokens_per_minute > 0 then
  refuse(TOKENS, wait_ms(b[3], claim.tokens, limits.tokens_per_minute, limits.burst_tokens))
end

local month = string.sub(day_of(now), 1, 7)
local spent_key = prefix .. 'spent:' .. month
if limits.budget_micros > 0 then
  local spent = tonumber(redis.call('GET', spent_key) or 0)
  if spent + claim.cost_micros > limits.budget_micros then refuse(BUDGET, month_ends_ms(now) - now) end
end

local flight_key = prefix .. 'flight:' .. claim.key_id .. ':' .. claim.user  -- all users of tokens share one key id
if limits.max_in_flight > 0 and redis.call('ZCARD', flight_key) >= limits.max_in_flight then
  redis.call('ZREMRANGEBYSCORE', flight_key, '-inf', now)
  if redis.call('ZCARD', flight_key) >= limits.max_in_flight then refuse(IN_FLIGHT, FLIGHT_RETRY_MS) end
end

if outcome > 0 then return {outcome, wait, b[1], b[3]} end

charge(claim.tokens)
if claim.cost_micros > 0 then
  if redis.call('INCRBY', spent_key, claim.cost_micros) == claim.cost_micros then
    redis.call('PEXPIRE', spent_key, SPENT_MS)
  end
end
if limits.max_in_flight > 0 then
  redis.call('ZADD', flight_key, now + FLIGHT_MS, claim.request_id)
end
redis.call('HSET', prefix .. 'reserved', claim.request_id,
  cmsgpack.pack({claim.user, claim.key_id, claim.tokens, claim.cost_micros, month, limits.tokens_per_minute}))
redis.call('ZADD', prefix .. 'reserved:at', now, claim.request_id)
return {0, 0, b[1], b[3]}
