-- force_release: end a lease without its holder, and grant the lock to the first waiter that can be
--   reached
-- KEYS[1] lock     the lock's key
-- KEYS[2] waiters  the tickets of the waiters
-- ARGV[1] token        of the request: 22 characters, constant over retries
-- ARGV[2] lease_fence  the fence of the lease, 16 digits
-- ARGV[3] deadline     the server's time, 16 digits, until which the caller waits for the reply
-- ARGV[4] proof        a number of the request, fresh each time it is sent
-- Returns 'released'             the lease has ended; the lock is free, granted to no waiter
-- Returns 'handed_over'          the lease has ended; a waiter has the lock now
-- Returns 'already'              this request ended it before (a repeated request)
-- Returns 'missing'              the lease had ended before, and the lock is free
-- Returns {'held', holder_info}  the lease had ended before, and another one has the lock
-- Returns {'late', time_us}      the deadline is over: no change
-- Returns {'conflict'}           the key holds what lualock did not write

local lock = KEYS[1]
local waiters = KEYS[2]
local token = ARGV[1]
local lease_fence = ARGV[2]
local deadline = ARGV[3]
local proof = ARGV[4]

--@include record
--@include waiters
--@include not_owner

local record = redis.call('GET', lock)
if not record then
  return proof .. 'missing'
elseif string.sub(record, 18, 39) == token then
  return proof .. 'already'
end
local state = string.sub(record, 1, 1)
local held = state == HELD or state == HELD_WAITED
if #record < 39 or not held or string.sub(record, 2, 17) ~= lease_fence then
  return not_owner(proof, record, token)
end
--@include time
if time_us > deadline then
  return {proof, 'late', time_us}
end
-- The caller takes the place of the holder, so that a release by the holder finds its lease ended.
record = string.sub(record, 1, 17) .. token .. NO_TOKEN
--@include release_and_grant_next
if next_holder then
  return proof .. 'handed_over'
end
return proof .. 'released'
