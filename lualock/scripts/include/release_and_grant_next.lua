-- release_and_grant_next: end the lease that has the lock, then grant the lock to the next waiter,
-- or leave a tombstone.
-- Needs the includes `record` and `waiters`, and the locals
--   lock, waiters  the keys
--   record         the value at the lock's key
--   token          the token in it
-- Binds next_holder: the token that has the lock now, or nil.
local last_fence = string.sub(record, 2, 17)
local previous_token, own_token, next_holder = token, nil, nil
--@include fence
local first_fence = fence
--@include grant_next
if not next_holder then
  local new_state = redis.call('ZCARD', waiters) > 0 and RELEASED_WAITED or RELEASED
  -- Waiters that could not be reached may hear of their fences at a replica: the next fence must be
  -- greater. The token stands as previous_token too, where a repeated release looks for it.
  local last_lease = fence == first_fence and string.sub(record, 2, 39) or fence .. token .. token
  -- Without memory as well: the server does not refuse a write after ZPOPMIN, which is one.
  redis.call('SET', lock, new_state .. last_lease, 'PX', TOMBSTONE_MS)
end
