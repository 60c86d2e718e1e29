-- One gateway's requests under way by model, as a msgpack map in ARGV[2]; those of all others come back, one by one.
-- KEYS[1]: a hash, gateway -> msgpack [at, map]. ARGV[1]: this gateway. Who was silent for ARGV[3] ms is forgotten.
local now = clock()
local others = {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  if flat[i] ~= ARGV[1] then
    local told = cmsgpack.unpack(flat[i + 1])
    if now - told[1] > tonumber(ARGV[3]) then
      redis.call('HDEL', KEYS[1], flat[i])
    else
      for model, count in pairs(told[2]) do
        others[#others + 1] = model
        others[#others + 1] = count
      end
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack({now, cmsgpack.unpack(ARGV[2])}))
return others
