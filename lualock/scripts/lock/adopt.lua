-- adopt: end the lease of a token, and give the lock to another token
-- KEYS[1] lock         the lock's key
-- ARGV[1] token        the token of the lease
-- ARGV[2] next_holder  the token that has the lock from now on, fresh, constant over retries
-- ARGV[3] ttl_ms       how long the lease lasts from now on, a whole number above 0
-- ARGV[4] deadline     the server's time, 16 digits, until which the caller waits for the reply
-- ARGV[5] holder_info  free text about the caller, kept beside the lease for inspect
-- ARGV[6] proof        a number of the request, fresh each time it is sent
-- Returns fence                     next_holder has the lock now; 16 digits, more than before
-- Returns {'owned', ttl_ms, fence}  next_holder had it already (a repeated request)
-- Returns {'late', time_us}         the deadline is over: no change
-- Returns 'already'                 the token released the lock, or its lease was adopted, before
-- Returns 'missing'                 the lease ended before, and the lock is free
-- Returns {'held', holder_info}     the lease ended before, and another one has the lock
-- Returns {'conflict'}              the key holds what lualock did not write

local lock = KEYS[1]
local token = ARGV[1]
local next_holder = ARGV[2]
local ttl_ms = ARGV[3]
local deadline = ARGV[4]
local holder_info = ARGV[5]
local proof = ARGV[6]

--@include record

local record = redis.call('GET', lock)
if not record then
  return proof .. 'missing'
end

local state = string.sub(record, 1, 1)
local owner = string.sub(record, 18, 39)
local held = state == HELD or state == HELD_WAITED
if held and owner == next_holder then
  return {proof, 'owned', redis.call('PTTL', lock), string.sub(record, 2, 17)}
elseif owner == token then
  if not held then
    return proof .. 'already'
  end
  -- A new fence, so that what the lock protects can refuse the holder before.
  local last_fence = string.sub(record, 2, 17)
  --@include fence
  if time_us > deadline then
    return {proof, 'late', time_us}
  end
  redis.call('SET', lock, state .. fence .. next_holder .. token .. holder_info, 'PX', ttl_ms)
  return proof .. fence
end

--@include not_owner
return not_owner(proof, record, token)
