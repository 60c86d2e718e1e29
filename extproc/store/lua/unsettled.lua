-- How many reservations are older than ARGV[1] ms. KEYS[1]: the tenant's prefix.
return redis.call('ZCOUNT', KEYS[1] .. 'reserved:at', '-inf', clock() - ARGV[1])
