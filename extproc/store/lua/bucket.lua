-- Token buckets and months: the twin of extproc/limits.py, where the arithmetic is explained.
local DROPS = 60000

local function size(per_minute, burst)
  return burst > 0 and burst or per_minute
end

local function refill(missing, at, per_minute, now)
  return math.max(0, missing - math.max(0, now - at) * per_minute)
end

local function wait_ms(missing, units, per_minute, burst)
  local allowed = math.max(0, (size(per_minute, burst) - units) * DROPS)
  return math.ceil(math.max(0, missing - allowed) / per_minute)
end

local function take(missing, units)
  return math.max(0, missing + units * DROPS)
end

-- One record per user holds both buckets: {missing requests, at, missing tokens, at}. A bucket whose rate is 0
-- for this caller stays as it is: another key of the same user may have a limit.
local function load_buckets(key, limits, now)
  local record = redis.call('GET', key)
  local b = {0, now, 0, now}
  if record then
    b[1], b[2], b[3], b[4] = string.match(record, '^(%d+) (%d+) (%d+) (%d+)$')
    for i = 1, 4 do b[i] = tonumber(b[i]) end
    if limits.requests_per_minute > 0 then
      b[1], b[2] = refill(b[1], b[2], limits.requests_per_minute, now), now
    end
    if limits.tokens_per_minute > 0 then
      b[3], b[4] = refill(b[3], b[4], limits.tokens_per_minute, now), now
    end
  end
  return b
end

-- Kept until both are full again (31 days at most), and a minute more, for nothing depends on its end.
local function save_buckets(key, b, limits)
  local full = 0
  if limits.requests_per_minute > 0 then
    full = b[1] / limits.requests_per_minute
  elseif b[1] > 0 then
    full = 86400000
  end
  if limits.tokens_per_minute > 0 then
    full = math.max(full, b[3] / limits.tokens_per_minute)
  elseif b[3] > 0 then
    full = math.max(full, 86400000)
  end
  local ttl = 60000 + math.min(2678400000, math.ceil(full))
  redis.call('SET', key, string.format('%d %d %d %d', b[1], b[2], b[3], b[4]), 'PX', ttl)
end

-- Days since the epoch to year, month, day (Howard Hinnant's civil_from_days, for years from 1970).
local function civil(days)
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return yoe + era * 400 + (month <= 2 and 1 or 0), month, doy - math.floor((153 * mp + 2) / 5) + 1
end

local function day_of(now)
  return string.format('%04d-%02d-%02d', civil(math.floor(now / 86400000)))
end

local function month_ends_ms(now)
  local days = math.floor(now / 86400000)
  local _, _, day = civil(days)
  local first = days - day + 1
  local _, _, over = civil(first + 31)
  return (first + 31 - over + 1) * 86400000
end
