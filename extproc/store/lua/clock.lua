-- The only clock that the scripts have: Redis's own, in epoch milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
