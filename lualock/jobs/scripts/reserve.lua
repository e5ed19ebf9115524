-- reserve: give a job that is about to be queued its place, unless another job has it
-- KEYS[1] lock      the key of the lock that is held while the job runs
-- KEYS[2] place     the key of the lock that a queued job has
-- ARGV[1] token     of the place: 22 characters, one for each time that a job is queued
-- ARGV[2] ttl_ms    how long the place is kept, a whole number above 0
-- ARGV[3] deadline  the server's time, 16 digits, after which nobody waits for the reply any more
-- ARGV[4] about     which job it is: free text, kept beside the place
-- ARGV[5] alone     '1': refused also while the lock is held; '0': whether it is does not matter
-- ARGV[6] sent      the server's time, 16 digits, at which or after which the request was sent
-- ARGV[7] proof  a number of the request, fresh each time it is sent
-- Returns fence                                the place is ours now; 16 digits
-- Returns {'owned', ttl_ms, fence}             this token has it already
-- Returns {'queued', ttl_ms, held_ms, about}   another job has the place
-- Returns {'running', ttl_ms, held_ms, about}  nobody has it, but somebody has the lock
-- Returns {'late', time_us}                    the deadline has passed, or it is a copy of a request
--   that took the place before, for a job that has begun or was cancelled since: nothing was done
-- Returns {'conflict'}                         a key holds what lualock did not write

local lock = KEYS[1]
local place = KEYS[2]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local about = ARGV[4]
local alone = ARGV[5]
local sent = ARGV[6]
local proof = ARGV[7]

--@include record

-- Whether a key has what it should, and whether it is held.
local function opened(record)
  if not record then
    return true, false
  end
  local state = string.sub(record, 1, 1)
  local held = state == HELD or state == HELD_WAITED
  local free = state == RELEASED or state == RELEASED_WAITED
  return #record >= 39 and tonumber(string.sub(record, 2, 17)) and (held or free), held
end

local queued = redis.call('GET', place)
local ours, taken = opened(queued)
local running = redis.call('GET', lock)
local sound, held = opened(running)
if not ours or not sound then
  return {proof, 'conflict'}
end
local last = queued and string.sub(queued, 2, 17)
--@include fence

local before = queued and string.sub(queued, 18, 39) or NOBODY
if taken and before == token then
  return {proof, 'owned', redis.call('PTTL', place), last}
elseif taken then
  local held_ms = math.floor((tonumber(fence) - tonumber(last)) / 1000)
  return {proof, 'queued', redis.call('PTTL', place), held_ms, string.sub(queued, 62)}
elseif alone == '1' and held and string.sub(running, 18, 39) ~= token then
  -- (A lock that is kept for this job's own retry is not in its way.)
  local held_ms = math.floor((tonumber(time_us) - tonumber(string.sub(running, 2, 17))) / 1000)
  return {proof, 'running', redis.call('PTTL', lock), held_ms, string.sub(running, 62)}
elseif time_us > deadline or (before == token and sent <= last) then
  -- (Whoever asks anew is told the time, and asks once more.)
  return {proof, 'late', time_us}
end
-- (Not everybody who waits could be told when it was given up.)
local state = queued and string.sub(queued, 1, 1) == RELEASED_WAITED and HELD_WAITED or HELD
redis.call('SET', place, state .. fence .. token .. before .. about, 'PX', ttl_ms)
return proof .. fence
