-- withdraw: take a request to release back
-- KEYS[1] asked  the key of the request
-- KEYS[2] queue  the tickets of those who wait for the lock
-- ARGV[1] token  who asked
-- Returns 'withdrawn'   the request is gone
-- Returns 'superseded'  somebody else has asked since, and waits for the lock
-- Returns 'alone'       somebody else has asked since, but does not wait for it (any more)
-- Returns 'missing'     there is none any more

local asked = KEYS[1]
local queue = KEYS[2]
local token = ARGV[1]

--@include queue

local request = redis.call('GET', asked)
if not request then
  return 'missing'
end
local latest = string.sub(request, 17)
if latest ~= token then
  for _, ticket in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local waiter, _, channel = open_ticket(ticket)
    if waiter == latest then
      if redis.pcall('PUBSUB', 'NUMSUB', channel)[2] == 0 then
        return 'alone'  -- it has been killed since: nobody listens
      end
      return 'superseded'
    end
  end
  return 'alone'
end
redis.call('DEL', asked)
return 'withdrawn'
