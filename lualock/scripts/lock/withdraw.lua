-- withdraw: take a stop request back
-- KEYS[1] stop_requests  the key of the lock's stop requests
-- KEYS[2] waiters        the tickets of the lock's waiters
-- ARGV[1] token          the token of the request
-- ARGV[2] proof          a number of the request, fresh each time it is sent
-- Returns 'withdrawn'   the request is gone; those made before it stand
-- Returns 'superseded'  another caller has made one since, and waits for the lock
-- Returns 'alone'       another caller has made one since, but does not wait for it (any more)
-- Returns 'missing'     there is no request any more, of any caller

local stop_requests = KEYS[1]
local waiters = KEYS[2]
local token = ARGV[1]
local proof = ARGV[2]

--@include waiters
--@include stop_requests

local entries = redis.call('GET', stop_requests)
if not entries then
  return proof .. 'missing'
end
local found, rest = false, ''
local later = {}
for time, requester in string.gmatch(entries, ENTRY) do
  if requester == token then
    found = true
  else
    rest = rest .. time .. requester
    later[requester] = later[requester] or not found
  end
end
local later_waits = false
for _, ticket in ipairs(redis.call('ZRANGE', waiters, 0, -1)) do
  local waiter, _, channel = open_ticket(ticket)
  -- (A channel without a subscriber is that of a process that was killed since.)
  if later[waiter] and redis.pcall('PUBSUB', 'NUMSUB', channel)[2] ~= 0 then
    later_waits = true
    break
  end
end
if found and rest == '' then
  redis.call('DEL', stop_requests)
elseif found then
  redis.call('SET', stop_requests, rest, 'PX', math.max(redis.call('PTTL', stop_requests), 1))
end
if later_waits then
  return proof .. 'superseded'
elseif later[string.sub(entries, 17, 38)] then
  return proof .. 'alone'
end
return proof .. 'withdrawn'
