-- release: give the lock back if this lease has it, leaving a short-lived tombstone
-- KEYS[1] lock   the lock's key
-- ARGV[1] lease  the lease's fence and its token as one word, or its token alone
-- Returns ''               it was ours and is free now
-- Returns 'already'        this lease released it before (a repeated request)
-- Returns 'waited'         it is ours and others wait: nothing was done, use hand_over
-- Returns 'missing'        the lease ended before, and nobody has the lock
-- Returns {'held', about}  the lease ended before, and somebody else has the lock
-- Returns {'conflict'}     the key holds what lualock did not write

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
    local written = redis.pcall('SET', lock, tombstone, 'PX', TOMBSTONE_MS)
    if written.err then
      -- Out of memory: a release must work all the same, and DEL always may.
      redis.call('DEL', lock)
    end
    -- A string made for the reply would make acquire and release 1 % slower.
    return proof
  elseif state == HELD_WAITED then
    return proof .. 'waited'
  end
  return proof .. 'already'
end

local token = string.sub(lease, -22)
--@include not_ours
