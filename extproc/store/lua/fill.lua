-- Put one answer into the tenant's cache. The record is 13 digits stored-at, 13 digits expires-at (epoch ms), then
-- the entry. The index (a sorted set by expiry) has members "fingerprint:bytes"; the sum of its bytes is
-- cache:bytes and changes only with its members, so it cannot drift. The entry that would expire first makes room.
local function drop(prefix, members, total)
  for _, member in ipairs(members) do
    local fingerprint, bytes = string.match(member, '^(.*):(%d+)$')
    redis.call('UNLINK', prefix .. 'cache:' .. fingerprint)
    total = total - bytes
  end
  return total
end

local function put(prefix, now, fill, entry)
  local index_key, bytes_key = prefix .. 'cache.index', prefix .. 'cache.bytes'
  local key = prefix .. 'cache:' .. fill.fingerprint
  local total = tonumber(redis.call('GET', bytes_key) or 0)
  local expired = redis.call('ZRANGEBYSCORE', index_key, '-inf', now, 'LIMIT', 0, 100)
  if #expired > 0 then
    redis.call('ZREM', index_key, unpack(expired))
    total = drop(prefix, expired, total)
  end
  local bytes = #entry
  if bytes <= fill.max_tenant_bytes and fill.ttl_ms > 0 then
    local old = redis.call('STRLEN', key) - 26
    if old >= 0 and redis.call('ZREM', index_key, fill.fingerprint .. ':' .. old) == 1 then total = total - old end
    while total + bytes > fill.max_tenant_bytes do
      local oldest = redis.call('ZPOPMIN', index_key)
      if #oldest == 0 then total = 0 break end
      total = drop(prefix, {oldest[1]}, total)
    end
    local stamp = string.format('%013d%013d', now, now + fill.ttl_ms)
    redis.call('SET', key, stamp .. entry, 'PX', fill.ttl_ms)
    redis.call('ZADD', index_key, now + fill.ttl_ms, fill.fingerprint .. ':' .. bytes)
    total = total + bytes
  end
  redis.call('SET', bytes_key, total)
end
