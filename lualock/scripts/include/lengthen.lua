-- lengthen: the lease lasts ttl_ms from now on, or for as long as it does already: a request that a
-- later one has overtaken on its way must not take away what that one was promised.
-- Needs lock and ttl_ms. Binds left_ms: how long the lease lasts now.
local left_ms = redis.call('PTTL', lock)
if left_ms < tonumber(ttl_ms) then
  redis.call('PEXPIRE', lock, ttl_ms)
  left_ms = ttl_ms
end
