-- tell_first: who is first in the queue now is told, for it must look when the lease ends; who is
-- gone is dropped, but not who is asking. Who came less than YOUNG_TICKS ago looks by itself soon
-- after that time, so a lock that goes round fast costs no message for this.
-- Needs queue, now, own (the token that asks, or nil) and left_ms: how long the lock is held from now
-- on unless that is extended.
while true do
  local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  if not first[1] or ticks(now) - first[2] % BAND < YOUNG_TICKS then
    break
  end
  local waiter, _, channel = open_ticket(first[1])
  if redis.pcall('PUBLISH', channel, waiter .. '=' .. left_ms) ~= 0 or waiter == own then
    break
  end
  redis.call('ZREM', queue, first[1])
end
