-- grant_next: grant the free lock to the first waiter that can be reached. A waiter that cannot is
-- dropped: its process is gone. If that only reconnects, it comes back with its place.
-- Needs the includes `record` and `waiters`, and the locals
--   lock, waiters        the keys
--   now, time_us, fence  as the include `fence` binds them
--   previous_token       the token that had the lock last
--   own_token            the caller's token: it needs no message and no claim; or nil
--   next_holder          nil
-- Sets next_holder: the token that has the lock now, or nil. Raises fence above those that waiters
-- were told without effect.
while not next_holder do
  local head = redis.call('ZPOPMIN', waiters)
  if not head[1] then
    break
  end
  local waiter, lease_ms, channel, holder_info = open_ticket(head[1])
  local receivers = waiter == own_token and 1
    or redis.pcall('PUBLISH', channel, waiter .. fence .. time_us)
  if type(receivers) ~= 'number' then
    -- The server's rules forbid the message: the waiter finds out when it checks the queue.
    redis.call('ZADD', waiters, head[2], head[1])
    redis.call('PEXPIRE', waiters, WAITERS_TTL_MS)  -- the key was gone if it was the only one
    break
  elseif receivers > 0 then
    if waiter ~= own_token and tonumber(lease_ms) > CLAIM_MS then
      lease_ms = CLAIM_MS
    end
    local granted = HELD_WAITED .. fence .. waiter .. previous_token .. holder_info
    redis.call('SET', lock, granted, 'PX', lease_ms)
    next_holder = waiter
    local left_ms = lease_ms
    --@include notify_head
  else
    -- The waiter may hear the message all the same: at a replica, which was the primary when the
    -- waiter subscribed, and believe it until it has asked here. So this fence is used up.
    fence = string.format('%016.0f', tonumber(fence) + 1)
  end
end
