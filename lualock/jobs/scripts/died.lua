-- died: the process that ran a job is dead: release the job's lock now, not when the lease ends
-- KEYS[1] lock    the key of the lock that is held while the job runs
-- KEYS[2] queue   the tickets of those who wait for it
-- ARGV[1] job     which job it is, as it is kept beside the lease
-- ARGV[2] owner   the token of the job's place; also that of its lock while it waits for a retry
-- ARGV[3] holder  how the description of the dead process begins, or '': it is not known
-- ARGV[4] proof  a number of the request, fresh each time it is sent
-- Returns 'released'     it was the dead run's; it is free, and nobody who waits could be given it
-- Returns 'handed_over'  it was the dead run's; a waiter has it now
-- Returns 'kept'         it is kept for the job's retry, which will come
-- Returns 'another'      somebody else has it
-- Returns 'missing'      nobody has it
-- Returns {'conflict'}   the key holds what lualock did not write

local lock = KEYS[1]
local queue = KEYS[2]
local job = ARGV[1]
local owner = ARGV[2]
local holder = ARGV[3]
local proof = ARGV[4]

--@include record
--@include queue

local record = redis.call('GET', lock)
if not record then
  return proof .. 'missing'
end
local state = string.sub(record, 1, 1)
if #record < 39 or not tonumber(string.sub(record, 2, 17)) or not string.find(state, '[HWRF]') then
  return {proof, 'conflict'}
elseif state == RELEASED or state == RELEASED_WAITED then
  return proof .. 'missing'
end
local about = string.sub(record, 62)
local token = string.sub(record, 18, 39)
local line_end = string.find(about, '\n', 1, true)
if not line_end or string.sub(about, line_end + 1) ~= job or string.sub(about, 1, #holder) ~= holder then
  return proof .. 'another'
elseif token == owner then
  return proof .. 'kept'
end
local fair = '1'
--@include give_up
if given_on then
  return proof .. 'handed_over'
end
return proof .. 'released'
