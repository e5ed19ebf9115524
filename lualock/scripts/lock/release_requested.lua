-- release_requested: say whether a holder is asked to release its lock
-- KEYS[1] stop_requests  the key of the lock's stop requests
-- ARGV[1] fence          the fence of the lease, 16 digits
-- ARGV[2] token          the token of the lease
-- ARGV[3] proof          a number of the request, fresh each time it is sent
-- Returns 'requested'      a caller has made a request since the lease began
-- Returns 'not_requested'  no caller has
-- Returns {'conflict'}     the key holds what lualock did not write

local stop_requests = KEYS[1]
local fence = ARGV[1]
local token = ARGV[2]
local proof = ARGV[3]

--@include stop_requests

local entries = redis.call('GET', stop_requests)
if not entries then
  return proof .. 'not_requested'
elseif #entries % 38 ~= 0 or not tonumber(string.sub(entries, 1, 16)) then
  return {proof, 'conflict'}
end
for time, requester in string.gmatch(entries, ENTRY) do
  if time > fence and requester ~= token then
    return proof .. 'requested'
  end
end
return proof .. 'not_requested'
