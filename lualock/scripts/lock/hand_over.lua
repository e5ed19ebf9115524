-- hand_over: release a lock that others wait for, and give it to the first who can be reached
-- KEYS[1] lock   the lock's key
-- KEYS[2] queue  the tickets of those who wait
-- ARGV[1] lease  the lease's fence and its token as one word, or its token alone
-- ARGV[2] fair   '1': the first waiter gets the lock; '0': it is told, and the lock is free
-- ARGV[3] proof  a number of the request, fresh each time it is sent
-- Returns 'released'       it was ours; it is free, and nobody who waits could be given it
-- Returns 'handed_over'    it was ours; a waiter has it now
-- Returns 'already'        this lease released it before (a repeated request)
-- Returns 'missing'        the lease ended before, and nobody has the lock
-- Returns {'held', about}  the lease ended before, and somebody else has the lock
-- Returns {'conflict'}     the key holds what lualock did not write

local lock = KEYS[1]
local queue = KEYS[2]
local lease = ARGV[1]
local fair = ARGV[2]
local proof = ARGV[3]
local token = string.sub(lease, -22)

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
  --@include give_up
  if given_on then
    return proof .. 'handed_over'
  end
  return proof .. 'released'
end

--@include not_ours
