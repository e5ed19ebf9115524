-- acquire: take the lock if it is free; asked again with the same token, answer the same lease
-- KEYS[1] lock    the lock's key
-- ARGV[1] token     22 characters, fresh for each acquisition, constant over its retries
-- ARGV[2] ttl_ms    how long the lease lasts, a whole number above 0
-- ARGV[3] deadline  the server's time, 16 digits, after which nobody waits for the reply any more
-- ARGV[4] about     who asks: free text, kept beside the lease for inspect
-- Returns fence                             it is ours now; 16 digits
-- Returns {'owned', ttl_ms, fence}          this token has it already
-- Returns {'held', ttl_ms, held_ms, about}  somebody else has it
-- Returns {'late', time_us}                 it is free, but the deadline has passed: nothing was done
-- Returns {'conflict'}                      the key holds what lualock did not write

local lock = KEYS[1]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local about = ARGV[4]
local proof = token

--@include record

local record = redis.call('GET', lock)
local state, last
if record then
  state = string.sub(record, 1, 1)
  last = string.sub(record, 2, 17)
  if #record < 39 or not tonumber(last) then
    return {proof, 'conflict'}
  end
end
--@include fence

local taken, before = HELD, NOBODY
if record then
  before = string.sub(record, 18, 39)
end
if record and state ~= RELEASED then
  if state == HELD or state == HELD_WAITED then
    local left_ms = redis.call('PTTL', lock)
    if before == token then
      return {proof, 'owned', left_ms, last}
    end
    local held_ms = math.floor((tonumber(fence) - tonumber(last)) / 1000)
    return {proof, 'held', left_ms, held_ms, string.sub(record, 62)}
  elseif state ~= RELEASED_WAITED then
    return {proof, 'conflict'}
  end
  taken = HELD_WAITED
end

if time_us > deadline then
  -- Who asked has given up, and would not know that it has the lock.
  return {proof, 'late', time_us}
end
redis.call('SET', lock, taken .. fence .. token .. before .. about, 'PX', ttl_ms)
return proof .. fence
