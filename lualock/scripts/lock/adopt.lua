-- adopt: take over the lease of another token, which ends with that
-- KEYS[1] lock      the lock's key
-- ARGV[1] token     the token of the lease
-- ARGV[2] heir      the token that has it from now on, fresh, constant over retries
-- ARGV[3] ttl_ms    how long the lease lasts from now on, a whole number above 0
-- ARGV[4] deadline  the server's time, 16 digits, after which nobody waits for the reply any more
-- ARGV[5] about     who adopts: free text, kept beside the lease for inspect
-- ARGV[6] proof  a number of the request, fresh each time it is sent
-- Returns fence                    the lease is the heir's now; 16 digits, greater than before
-- Returns {'owned', ttl_ms, fence}  it was already (a repeated request)
-- Returns {'late', time_us}         the deadline has passed: nothing was done
-- Returns 'already'                 the token released it, or passed it on, before
-- Returns 'missing'                 the lease ended before, and nobody has the lock
-- Returns {'held', about}           the lease ended before, and somebody else has the lock
-- Returns {'conflict'}              the key holds what lualock did not write

local lock = KEYS[1]
local token = ARGV[1]
local heir = ARGV[2]
local ttl_ms = ARGV[3]
local deadline = ARGV[4]
local about = ARGV[5]
local proof = ARGV[6]

--@include record

local record = redis.call('GET', lock)
if not record then
  return proof .. 'missing'
end

local state = string.sub(record, 1, 1)
local owner = string.sub(record, 18, 39)
local held = state == HELD or state == HELD_WAITED
if held and owner == heir then
  return {proof, 'owned', redis.call('PTTL', lock), string.sub(record, 2, 17)}
elseif owner == token then
  if not held then
    return proof .. 'already'
  end
  -- A new fence, so that whatever the lock protects can refuse who had it before.
  local last = string.sub(record, 2, 17)
  --@include fence
  if time_us > deadline then
    return {proof, 'late', time_us}
  end
  redis.call('SET', lock, state .. fence .. heir .. token .. about, 'PX', ttl_ms)
  return proof .. fence
end

--@include not_ours
