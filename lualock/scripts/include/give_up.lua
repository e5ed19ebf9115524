-- give_up: the lock is ours (record has our token): hand it over, or leave a tombstone.
-- Needs lock, queue, fair and record. Binds given: the next holder's token, or nil.
local given
if fair == '1' then
  local last = string.sub(record, 2, 17)
  --@include fence
  given = pass_on(lock, queue, fence, token)
else
  tell_first(queue)
end
if not given then
  local freed = redis.call('ZCARD', queue) > 0 and RELEASED_WAITED or RELEASED
  local written = redis.pcall('SET', lock, freed .. string.sub(record, 2, 39), 'PX', TOMBSTONE_MS)
  if written.err then
    -- Out of memory: a release must work all the same, and DEL always may.
    redis.call('DEL', lock)
  end
end
