-- start: begin a queued job: take its lock and end its reservation, in one step
-- KEYS[1] lock                 the key of the lock that is held while the job runs
-- KEYS[2] reservation          the key of the lock that the queued job holds
-- KEYS[3] waiters              the tickets of the lock's waiters
-- KEYS[4] reservation_waiters  the tickets of the reservation's waiters
-- ARGV[1] token              22 characters, fresh for each start, constant over its retries
-- ARGV[2] ttl_ms             how long the lease lasts, a whole number above 0
-- ARGV[3] deadline           the server's time, 16 digits, until which the caller waits for a reply
-- ARGV[4] holder_info        free text about the caller, kept beside the lease for inspect
-- ARGV[5] reservation_token  the token of the job's reservation, and of a lock kept for its retry
-- ARGV[6] proof              a number of the request, fresh each time it is sent
-- Returns fence                                   the job has the lock, not the reservation
-- Returns {'owned', ttl_ms, fence}                this token has the lock already
-- Returns {'held', ttl_ms, held_ms, holder_info}  another token has it; the reservation stays
-- Returns {'late', time_us}                       the deadline is over: no change
-- Returns {'conflict'}                            a key holds what lualock did not write

local lock = KEYS[1]
local reservation = KEYS[2]
local waiters = KEYS[3]
local reservation_waiters = KEYS[4]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local holder_info = ARGV[4]
local reservation_token = ARGV[5]
local proof = ARGV[6]

--@include record
--@include waiters

local record = redis.call('GET', lock)
local state, last_fence
if record then
  state = string.sub(record, 1, 1)
  last_fence = string.sub(record, 2, 17)
  if #record < 39 or not tonumber(last_fence) or not string.find(state, '[HWRF]') then
    return {proof, 'conflict'}
  end
end
local queued = redis.call('GET', reservation)
local state_and_fence = '^[HWRF]%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d'
if queued and (#queued < 39 or not string.find(queued, state_and_fence)) then
  return {proof, 'conflict'}
end
--@include fence

local new_state, previous_token = HELD, NO_TOKEN
if record then
  previous_token = string.sub(record, 18, 39)
  if state == HELD or state == HELD_WAITED then
    if previous_token == token then
      return {proof, 'owned', redis.call('PTTL', lock), last_fence}
    elseif previous_token ~= reservation_token then
      local held_ms = math.floor((tonumber(fence) - tonumber(last_fence)) / 1000)
      return {proof, 'held', redis.call('PTTL', lock), held_ms, string.sub(record, 62)}
    end
    -- The job's last attempt kept the lock for this one.
    new_state = state
  elseif state == RELEASED_WAITED then
    new_state = HELD_WAITED
  end
end

if time_us > deadline then
  -- The caller has given up, and would not know that it has the lock.
  return {proof, 'late', time_us}
end
-- Before the first write, for ZCARD fails at a key that lualock did not write.
local has_waiters = new_state == HELD_WAITED and redis.call('ZCARD', waiters) > 0
local queued_state = queued and string.sub(queued, 18, 39) == reservation_token
  and string.sub(queued, 1, 1)
local reserved = queued_state == HELD or queued_state == HELD_WAITED
local reservation_waited = queued_state == HELD_WAITED
  and redis.call('ZCARD', reservation_waiters) > 0
-- The lock first: if the server is out of memory this fails, and nothing has changed.
redis.call('SET', lock, new_state .. fence .. token .. previous_token .. holder_info, 'PX', ttl_ms)
local own_token
if has_waiters then
  -- A lock that was kept for a retry would have ended at another time.
  local left_ms = ttl_ms
  --@include notify_head
end
if reserved then
  -- The tombstone names the request that had the reservation, so that a late copy of it is refused.
  local free_state = reservation_waited and RELEASED_WAITED or RELEASED
  local tombstone = free_state .. string.sub(queued, 2, 39)
  redis.call('SET', reservation, tombstone, 'PX', TOMBSTONE_MS)
end
if reservation_waited then
  local waiters, left_ms = reservation_waiters, 0
  --@include notify_head
end
return proof .. fence
