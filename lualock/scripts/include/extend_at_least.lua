-- extend_at_least: let the lease last ttl_ms from now on, or as long as it does if that is longer.
-- A request that arrives after a later one must not shorten what the later one promised.
-- Needs the locals lock (its key) and ttl_ms. Binds left_ms: how long the lease lasts now.
local left_ms = redis.call('PTTL', lock)
if left_ms < tonumber(ttl_ms) then
  redis.call('PEXPIRE', lock, ttl_ms)
  left_ms = ttl_ms
end
