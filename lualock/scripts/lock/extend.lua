-- extend: let a lease last ttl_ms from now on, if it has the lock
-- KEYS[1] lock   the lock's key
-- KEYS[2] queue  the tickets of those who wait
-- ARGV[1] lease    the lease's fence and its token as one word, or its token alone
-- ARGV[2] ttl_ms   how long the lease lasts from now on, a whole number above 0
-- ARGV[3] shorten  '1': also where that is less than is left of it; '0': at least so long
-- ARGV[4] proof  a number of the request, fresh each time it is sent
-- Returns 'extended'       it is ours and lasts ttl_ms from now, or longer
-- Returns 'already'        it was released before
-- Returns 'missing'        the lease ended before, and nobody has the lock
-- Returns {'held', about}  the lease ended before, and somebody else has the lock
-- Returns {'conflict'}     the key holds what lualock did not write

local lock = KEYS[1]
local queue = KEYS[2]
local lease = ARGV[1]
local ttl_ms = ARGV[2]
local shorten = ARGV[3]
local proof = ARGV[4]

--@include record
--@include queue

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
    --@include lengthen
    return proof .. 'extended'
  end
  local waited = state == HELD_WAITED and redis.call('ZCARD', queue) > 0
  redis.call('PEXPIRE', lock, ttl_ms)
  if waited then
    -- Who is first means to look when the lease would have ended.
    local now, left_ms, own = redis.call('TIME'), ttl_ms, nil
    --@include tell_first
  end
  return proof .. 'extended'
end

local token = string.sub(lease, -22)
--@include not_ours
