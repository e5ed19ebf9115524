-- extend: let a lease last ttl_ms from now on, if it has the lock
-- KEYS[1] lock     the lock's key
-- KEYS[2] waiters  the tickets of the waiters
-- ARGV[1] lease    the lease's fence and its token as one word, or its token alone
-- ARGV[2] ttl_ms   how long the lease lasts from now on, a whole number above 0
-- ARGV[3] shorten  '1': also if more than that is left of it; '0': at least so long
-- ARGV[4] proof    a number of the request, fresh each time it is sent
-- Returns 'extended'             the lease has the lock, and lasts ttl_ms from now, or longer
-- Returns 'already'              it released the lock before
-- Returns 'missing'              the lease ended before, and the lock is free
-- Returns {'held', holder_info}  the lease ended before, and another one has the lock
-- Returns {'conflict'}           the key holds what lualock did not write

local lock = KEYS[1]
local waiters = KEYS[2]
local lease = ARGV[1]
local ttl_ms = ARGV[2]
local shorten = ARGV[3]
local proof = ARGV[4]

--@include record
--@include waiters

local record = redis.call('GET', lock)
if not record then
  return proof .. 'missing'
end

local state = string.sub(record, 1, 1)
if string.sub(record, 40 - #lease, 39) == lease then
  if state ~= HELD and state ~= HELD_WAITED then
    return proof .. 'already'
  end
  if shorten ~= '1' then
    --@include extend_at_least
    return proof .. 'extended'
  end
  -- ZCARD first, for it fails at a key that lualock did not write.
  local waited = state == HELD_WAITED and redis.call('ZCARD', waiters) > 0
  redis.call('PEXPIRE', lock, ttl_ms)
  if waited then
    -- The head plans to check the queue when the lease would have ended.
    local now, own_token, left_ms = redis.call('TIME'), nil, ttl_ms
    --@include notify_head
  end
  return proof .. 'extended'
end

--@include not_owner
return not_owner(proof, record, string.sub(lease, -22))
