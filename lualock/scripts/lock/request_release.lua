-- request_release: ask the holder to stop and release the lock
-- KEYS[1] lock           the lock's key
-- KEYS[2] stop_requests  the key of the lock's stop requests
-- ARGV[1] token          of the request: 22 characters, constant over retries
-- ARGV[2] ttl_ms         how long the request stands, a whole number above 0
-- ARGV[3] deadline       the server's time, 16 digits, until which the caller waits for the reply
-- ARGV[4] proof          a number of the request, fresh each time it is sent
-- Returns {'asked', holder_info}  the holder is asked
-- Returns 'free'                  the lock is free: no change
-- Returns {'late', time_us}       the deadline is over: no change
-- Returns {'conflict'}            a key holds what lualock did not write

local lock = KEYS[1]
local stop_requests = KEYS[2]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local proof = ARGV[4]

--@include record
--@include stop_requests

-- How many bytes of entries are kept.
local MAX_BYTES = 16 * 38

local record = redis.call('GET', lock)
if not record then
  return proof .. 'free'
end
local state = string.sub(record, 1, 1)
local holder_fence = string.sub(record, 2, 17)
local entries = redis.call('GET', stop_requests)
if #record < 39 or not tonumber(holder_fence) or not string.find(state, '[HWRF]') then
  return {proof, 'conflict'}
elseif entries and (#entries % 38 ~= 0 or not tonumber(string.sub(entries, 1, 16))) then
  return {proof, 'conflict'}
elseif state == RELEASED or state == RELEASED_WAITED then
  return proof .. 'free'
end
local last_fence = holder_fence
if entries and string.sub(entries, 1, 16) > last_fence then
  -- The new entry is later than those before it, so their callers see that they are superseded.
  last_fence = string.sub(entries, 1, 16)
end
--@include fence

local holder_info = string.sub(record, 62)
-- The entries before it for this holder stay, for the new one may be taken back.
local kept = ''
for time, requester in string.gmatch(entries or '', ENTRY) do
  if requester == token then
    return {proof, 'asked', holder_info}
  elseif time > holder_fence and #kept < MAX_BYTES - 38 then
    kept = kept .. time .. requester
  end
end
if time_us > deadline then
  return {proof, 'late', time_us}
end
if kept ~= '' and redis.call('PTTL', stop_requests) > tonumber(ttl_ms) then
  ttl_ms = redis.call('PTTL', stop_requests)
end
redis.call('SET', stop_requests, fence .. token .. kept, 'PX', ttl_ms)
return {proof, 'asked', holder_info}
