-- release_and_grant_next: end the lease that has the lock, then grant the lock to the next waiter,
-- or leave a tombstone.
-- Needs the includes `record` and `waiters`, and the locals
--   lock, waiters  the keys
--   record         the value at the lock's key
--   token          the token in it
--   fair           '1': the next waiter gets the lock; '0': one waiter is told that it is free
-- Binds next_holder: the token that has the lock now, or nil.
local last_fence = string.sub(record, 2, 17)
local previous_token, own_token, next_holder = token, nil, nil
--@include fence
local first_fence = fence
if fair == '1' then
  --@include grant_next
else
  -- A waiter that is told leaves the queue, so that one that does not react is told once. It gets
  -- its place back when it checks the queue.
  while true do
    local ticket = redis.call('ZRANGE', waiters, 0, 0)[1]
    if not ticket then
      break
    end
    local waiter, _, channel = open_ticket(ticket)
    local receivers = redis.pcall('PUBLISH', channel, waiter)
    if type(receivers) ~= 'number' then
      break  -- the server's rules forbid the message
    end
    redis.call('ZREM', waiters, ticket)
    if receivers > 0 then
      break
    end
  end
end
if not next_holder then
  local new_state = redis.call('ZCARD', waiters) > 0 and RELEASED_WAITED or RELEASED
  -- Waiters that could not be reached may hear of their fences at a replica: the next fence must be
  -- greater. The token stands as previous_token too, where a repeated release looks for it.
  local last_lease = fence == first_fence and string.sub(record, 2, 39) or fence .. token .. token
  local reply = redis.pcall('SET', lock, new_state .. last_lease, 'PX', TOMBSTONE_MS)
  if reply.err then
    -- Out of memory: a release must work all the same, and DEL always may.
    redis.call('DEL', lock)
  end
end
