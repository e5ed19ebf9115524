-- hand_over: release a lock that may have waiters, and grant it to the first that can be reached
-- KEYS[1] lock     the lock's key
-- KEYS[2] waiters  the tickets of the waiters
-- ARGV[1] lease    the lease's fence and its token as one word, or its token alone
-- ARGV[2] proof    a number of the request, fresh each time it is sent
-- Returns 'released'             this lease had the lock; it is free, granted to no waiter
-- Returns 'handed_over'          this lease had the lock; a waiter has it now
-- Returns 'already'              this lease released it before (a repeated request)
-- Returns 'missing'              the lease ended before, and the lock is free
-- Returns {'held', holder_info}  the lease ended before, and another one has the lock
-- Returns {'conflict'}           the key holds what lualock did not write

local lock = KEYS[1]
local waiters = KEYS[2]
local lease = ARGV[1]
local proof = ARGV[2]
local token = string.sub(lease, -22)

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
  --@include release_and_grant_next
  if next_holder then
    return proof .. 'handed_over'
  end
  return proof .. 'released'
end

--@include not_owner
return not_owner(proof, record, token)
