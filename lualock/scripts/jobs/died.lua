-- died: release the lock of a job whose process is dead, now rather than when the lease ends
-- KEYS[1] lock               the key of the lock that is held while the job runs
-- KEYS[2] waiters            the tickets of its waiters
-- ARGV[1] job                the job, as it stands in the holder_info of its lease
-- ARGV[2] reservation_token  the token of the job's reservation, and of a lock kept for its retry
-- ARGV[3] holder             how the holder_info of the dead process begins, or '': unknown
-- ARGV[4] proof              a number of the request, fresh each time it is sent
-- Returns 'released'     the dead run had the lock; it is free, granted to no waiter
-- Returns 'handed_over'  the dead run had the lock; a waiter has it now
-- Returns 'kept'         it is kept for the job's retry, which will come
-- Returns 'another'      another holder has it
-- Returns 'missing'      it is free
-- Returns {'conflict'}   the key holds what lualock did not write

local lock = KEYS[1]
local waiters = KEYS[2]
local job = ARGV[1]
local reservation_token = ARGV[2]
local holder = ARGV[3]
local proof = ARGV[4]

--@include record
--@include waiters

local record = redis.call('GET', lock)
if not record then
  return proof .. 'missing'
end
local state = string.sub(record, 1, 1)
local last_fence = string.sub(record, 2, 17)
if #record < 39 or not tonumber(last_fence) or not string.find(state, '[HWRF]') then
  return {proof, 'conflict'}
elseif state == RELEASED or state == RELEASED_WAITED then
  return proof .. 'missing'
end
local holder_info = string.sub(record, 62)
local token = string.sub(record, 18, 39)
local line_end = string.find(holder_info, '\n', 1, true)
local same_job = line_end and string.sub(holder_info, line_end + 1) == job
if not same_job or string.sub(holder_info, 1, #holder) ~= holder then
  return proof .. 'another'
elseif token == reservation_token then
  return proof .. 'kept'
end
--@include release_and_grant_next
if next_holder then
  return proof .. 'handed_over'
end
return proof .. 'released'
