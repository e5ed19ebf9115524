-- start: a queued job begins to run: take the lock and give up the place, with no moment in between
-- KEYS[1] lock         the key of the lock that is held while the job runs
-- KEYS[2] place        the key of the lock that a queued job has
-- KEYS[3] queue        the tickets of those who wait for the lock
-- KEYS[4] place_queue  the tickets of those who wait for the place
-- ARGV[1] token     of the lease: 22 characters, fresh for each start, constant over its retries
-- ARGV[2] ttl_ms    how long the lease lasts, a whole number above 0
-- ARGV[3] deadline  the server's time, 16 digits, after which nobody waits for the reply any more
-- ARGV[4] about     who asks: free text, kept beside the lease for inspect
-- ARGV[5] owner     the token of the job's place; also that of its lock while it waits for a retry
-- ARGV[6] proof  a number of the request, fresh each time it is sent
-- Returns fence                             it is ours now, and the place is free; 16 digits
-- Returns {'owned', ttl_ms, fence}          this token has it already
-- Returns {'held', ttl_ms, held_ms, about}  somebody else has it, and the place stays as it is
-- Returns {'late', time_us}                 the deadline has passed: nothing was done
-- Returns {'conflict'}                      a key holds what lualock did not write

local lock = KEYS[1]
local place = KEYS[2]
local queue = KEYS[3]
local place_queue = KEYS[4]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local about = ARGV[4]
local owner = ARGV[5]
local proof = ARGV[6]

--@include record
--@include queue

local record = redis.call('GET', lock)
local state, last
if record then
  state = string.sub(record, 1, 1)
  last = string.sub(record, 2, 17)
  if #record < 39 or not tonumber(last) or not string.find(state, '[HWRF]') then
    return {proof, 'conflict'}
  end
end
local queued = redis.call('GET', place)
if queued and (#queued < 39 or not string.find(queued, '^[HWRF]%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d')) then
  return {proof, 'conflict'}
end
--@include fence

local taken, before = HELD, NOBODY
if record then
  before = string.sub(record, 18, 39)
  if state == HELD or state == HELD_WAITED then
    if before == token then
      return {proof, 'owned', redis.call('PTTL', lock), last}
    elseif before ~= owner then
      local held_ms = math.floor((tonumber(fence) - tonumber(last)) / 1000)
      return {proof, 'held', redis.call('PTTL', lock), held_ms, string.sub(record, 62)}
    end
    -- The job's last attempt left it to this one.
    taken = state
  elseif state == RELEASED_WAITED then
    taken = HELD_WAITED
  end
end

if time_us > deadline then
  -- Who asked has given up, and would not know that it has the lock.
  return {proof, 'late', time_us}
end
-- Looked at before anything is written, for it fails where a queue is not lualock's.
local waited = taken == HELD_WAITED and redis.call('ZCARD', queue) > 0
local place_state = queued and string.sub(queued, 18, 39) == owner and string.sub(queued, 1, 1)
local ours = place_state == HELD or place_state == HELD_WAITED
local place_waited = place_state == HELD_WAITED and redis.call('ZCARD', place_queue) > 0
-- The lock first: if the server is out of memory this fails, and nothing was done.
redis.call('SET', lock, taken .. fence .. token .. before .. about, 'PX', ttl_ms)
local own
if waited then
  -- A lock that was kept for a retry would have ended at another time.
  local left_ms = ttl_ms
  --@include tell_first
end
if ours then
  -- What is left says which request had it, so that a late copy of that takes it for no job.
  local tombstone = (place_waited and RELEASED_WAITED or RELEASED) .. string.sub(queued, 2, 39)
  redis.call('SET', place, tombstone, 'PX', TOMBSTONE_MS)
end
if place_waited then
  queue = place_queue
  local left_ms = 0
  --@include tell_first
end
return proof .. fence
