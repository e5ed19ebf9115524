-- pass_on: give the free lock to the first who can be reached; who cannot is dropped, for his process
-- is gone (if it is only reconnecting, it comes back with its place). Whose token is `own` needs no
-- message: it is asking, and gets its whole ttl.
-- Needs lock, queue, now, fence, time_us, before (who released it) and own (a token, or nil). Binds
-- given: the token that has the lock now, or nil.
local given
while not given do
  local first = redis.call('ZPOPMIN', queue)
  if not first[1] then
    break
  end
  local heir, lease_ms, channel, holder = open_ticket(first[1])
  local heard = heir == own and 1 or redis.pcall('PUBLISH', channel, heir .. fence .. time_us)
  if type(heard) ~= 'number' then
    -- The server's rules forbid the message: the waiter finds out when it looks again.
    redis.call('ZADD', queue, first[2], first[1])
    redis.call('PEXPIRE', queue, QUEUE_MS)  -- the key was gone if nobody else was in it
    break
  elseif heard > 0 then
    if heir ~= own and tonumber(lease_ms) > CLAIM_MS then
      lease_ms = CLAIM_MS
    end
    redis.call('SET', lock, HELD_WAITED .. fence .. heir .. before .. holder, 'PX', lease_ms)
    given = heir
    local left_ms = lease_ms
    --@include tell_first
  else
    -- He may hear of it all the same: on a replica, which was the primary when he began to listen,
    -- and believe it until he has asked here. Nobody else may have that fence.
    fence = string.format('%016.0f', tonumber(fence) + 1)
  end
end
