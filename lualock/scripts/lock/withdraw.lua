-- withdraw: take a request to release back
-- KEYS[1] asked  the key of the request
-- KEYS[2] queue  the tickets of those who wait for the lock
-- ARGV[1] token  who asked
-- ARGV[2] proof  a number of the request, fresh each time it is sent
-- Returns 'withdrawn'   the request is gone; those that were made before it stand
-- Returns 'superseded'  somebody else has asked since, and waits for the lock
-- Returns 'alone'       somebody else has asked since, but does not wait for it (any more)
-- Returns 'missing'     there is none any more, nor anybody's

local asked = KEYS[1]
local queue = KEYS[2]
local token = ARGV[1]
local proof = ARGV[2]

--@include queue

local ONE = '(' .. string.rep('.', 16) .. ')(' .. string.rep('.', 22) .. ')'

local request = redis.call('GET', asked)
if not request then
  return proof .. 'missing'
end
local ours, rest = false, ''
local later = {}
for time, asker in string.gmatch(request, ONE) do
  if asker == token then
    ours = true
  else
    rest = rest .. time .. asker
    later[asker] = later[asker] or not ours
  end
end
local waits = false
for _, ticket in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
  local waiter, _, channel = open_ticket(ticket)
  if later[waiter] and redis.pcall('PUBSUB', 'NUMSUB', channel)[2] ~= 0 then
    waits = true
    break
  end
  -- (Where nobody listens it has been killed since.)
end
if ours and rest == '' then
  redis.call('DEL', asked)
elseif ours then
  redis.call('SET', asked, rest, 'PX', math.max(redis.call('PTTL', asked), 1))
end
if waits then
  return proof .. 'superseded'
elseif later[string.sub(request, 17, 38)] then
  return proof .. 'alone'
end
return proof .. 'withdrawn'
