-- notify_head: tell the head of the queue how long the lock is held, for the head must check the
-- queue when the lease ends. A head whose process is gone is dropped, and the next one is told.
-- Needs the include `waiters`, and the locals
--   waiters    the queue's key
--   now        the reply to TIME
--   own_token  the caller's token, which reads the same in its reply; or nil
--   left_ms    how long the lock is held from now on unless its lease is extended; 0: it is free
while true do
  local head = redis.call('ZRANGE', waiters, 0, 0, 'WITHSCORES')
  -- A lock that changes hands fast costs no message for this: its waiters are young.
  if not head[1] or ticks(now) - head[2] % BAND < YOUNG_TICKS then
    break
  end
  local waiter, _, channel = open_ticket(head[1])
  if waiter == own_token or redis.pcall('PUBLISH', channel, waiter .. '=' .. left_ms) ~= 0 then
    break
  end
  redis.call('ZREM', waiters, head[1])
end
