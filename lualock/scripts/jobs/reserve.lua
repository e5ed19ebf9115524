-- reserve: give a job that is about to be queued its reservation, unless another job has it
-- KEYS[1] lock         the key of the lock that is held while the job runs
-- KEYS[2] reservation  the key of the lock that the queued job holds
-- ARGV[1] token        of the reservation: 22 characters, one for each time that a job is queued
-- ARGV[2] ttl_ms       how long the reservation lasts, a whole number above 0
-- ARGV[3] deadline     the server's time, 16 digits, until which the caller waits for the reply
-- ARGV[4] holder_info  free text that names the job, kept beside the reservation
-- ARGV[5] alone        '1': refuse also while the lock is held; '0': whether it is does not matter
-- ARGV[6] sent_us      the server's time, 16 digits, when the request was sent, or before
-- ARGV[7] proof        a number of the request, fresh each time it is sent
-- Returns fence                                      the job has the reservation now; 16 digits
-- Returns {'owned', ttl_ms, fence}                   this token has it already
-- Returns {'queued', ttl_ms, held_ms, holder_info}   another job has the reservation
-- Returns {'running', ttl_ms, held_ms, holder_info}  no job has it, but the lock is held
-- Returns {'late', time_us}                          the deadline is over, or it is a copy of a
--   request whose job has begun or was cancelled since: no change
-- Returns {'conflict'}                               a key holds what lualock did not write

local lock = KEYS[1]
local reservation = KEYS[2]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local holder_info = ARGV[4]
local alone = ARGV[5]
local sent_us = ARGV[6]
local proof = ARGV[7]

--@include record

-- Whether lualock wrote a record (false: there is none), and whether its lock is held.
local function check_record(record)
  if not record then
    return true, false
  end
  local state = string.sub(record, 1, 1)
  local held = state == HELD or state == HELD_WAITED
  local free = state == RELEASED or state == RELEASED_WAITED
  return #record >= 39 and tonumber(string.sub(record, 2, 17)) and (held or free), held
end

local queued = redis.call('GET', reservation)
local queued_valid, is_queued = check_record(queued)
local running = redis.call('GET', lock)
local running_valid, is_running = check_record(running)
if not queued_valid or not running_valid then
  return {proof, 'conflict'}
end
local last_fence = queued and string.sub(queued, 2, 17)
--@include fence

local previous_token = queued and string.sub(queued, 18, 39) or NO_TOKEN
if is_queued and previous_token == token then
  return {proof, 'owned', redis.call('PTTL', reservation), last_fence}
elseif is_queued then
  local held_ms = math.floor((tonumber(fence) - tonumber(last_fence)) / 1000)
  return {proof, 'queued', redis.call('PTTL', reservation), held_ms, string.sub(queued, 62)}
elseif alone == '1' and is_running and string.sub(running, 18, 39) ~= token then
  -- (A lock that is kept for this job's own retry does not refuse it.)
  local held_ms = math.floor((tonumber(time_us) - tonumber(string.sub(running, 2, 17))) / 1000)
  return {proof, 'running', redis.call('PTTL', lock), held_ms, string.sub(running, 62)}
elseif time_us > deadline or (previous_token == token and sent_us <= last_fence) then
  -- (A caller that reserves anew learns the time by this, and sends its request again.)
  return {proof, 'late', time_us}
end
-- (When the reservation ended, some waiters may have been left in the queue.)
local state = queued and string.sub(queued, 1, 1) == RELEASED_WAITED and HELD_WAITED or HELD
local record = state .. fence .. token .. previous_token .. holder_info
redis.call('SET', reservation, record, 'PX', ttl_ms)
return proof .. fence
