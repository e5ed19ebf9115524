-- claim: let a lease that was granted to a waiter last its whole ttl
-- KEYS[1] lock    the lock's key
-- ARGV[1] lease   its fence and its token, as they stand in the record
-- ARGV[2] ttl_ms  how long the lease lasts from now on at least, a whole number above 0
-- ARGV[3] proof   a number of the request, fresh each time it is sent
-- Returns 'claimed'  the lease has the lock, and lasts ttl_ms from now, or longer
-- Returns 'missing'  it does not have the lock any more: no change

local lock = KEYS[1]
local lease = ARGV[1]
local ttl_ms = ARGV[2]
local proof = ARGV[3]

-- Short, for the source is sent each time. W: the state that grant_next writes.
if redis.call('GETRANGE', lock, 0, 38) ~= 'W' .. lease then
  return proof .. 'missing'
end
--@include extend_at_least
return proof .. 'claimed'
