-- release: free the lock if this lease has it and no waiter is in line, leaving a tombstone
-- KEYS[1] lock   the lock's key
-- ARGV[1] lease  the lease's fence and its token as one word, or its token alone
-- Returns ''                     this lease had the lock, and it is free now
-- Returns 'already'              this lease released it before (a repeated request)
-- Returns 'waited'               there may be waiters: nothing was done, use hand_over
-- Returns 'missing'              the lease ended before, and the lock is free
-- Returns {'held', holder_info}  the lease ended before, and another one has the lock
-- Returns {'conflict'}           the key holds what lualock did not write

local lock = KEYS[1]
local lease = ARGV[1]
local proof = lease

--@include record

local record = redis.call('GET', lock)
if not record then
  return proof .. 'missing'
end

local state = string.sub(record, 1, 1)
if string.sub(record, 40 - #lease, 39) == lease then
  if state == HELD then
    local tombstone = RELEASED .. string.sub(record, 2, 39)
    local reply = redis.pcall('SET', lock, tombstone, 'PX', TOMBSTONE_MS)
    if reply.err then
      -- Out of memory: a release must work all the same, and DEL always may.
      redis.call('DEL', lock)
    end
    -- The bare proof: a string made for the reply would make acquire and release 1 % slower.
    return proof
  elseif state == HELD_WAITED then
    return proof .. 'waited'
  end
  return proof .. 'already'
end

--@include not_owner
return not_owner(proof, record, string.sub(lease, -22))
