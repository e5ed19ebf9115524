-- give_up: the lock is ours (record has our token): hand it over, or leave a tombstone.
-- Needs lock, queue, token, fair and record. Binds given_on: the next holder's token, or nil.
local last = string.sub(record, 2, 17)
local before, own = token, nil
--@include fence
local given_on
local offered = fence
if fair == '1' then
  --@include pass_on
  given_on = given
else
  -- Tell the first who can be reached that the lock is free for whoever comes. Who is told has its
  -- place back when it looks; who does not look must not be told again and again, in vain.
  while true do
    local ticket = redis.call('ZRANGE', queue, 0, 0)[1]
    if not ticket then
      break
    end
    local heir, _, channel = open_ticket(ticket)
    local heard = redis.pcall('PUBLISH', channel, heir)
    if type(heard) ~= 'number' then
      break  -- the server's rules forbid the message
    end
    redis.call('ZREM', queue, ticket)
    if heard > 0 then
      break
    end
  end
end
if not given_on then
  local freed = redis.call('ZCARD', queue) > 0 and RELEASED_WAITED or RELEASED
  -- Whoever could not be told may hear of its fence on a replica: the next one is greater. Who
  -- released it stands where a record says that, so that a repeated release is known.
  local left = fence == offered and string.sub(record, 2, 39) or fence .. token .. token
  local written = redis.pcall('SET', lock, freed .. left, 'PX', TOMBSTONE_MS)
  if written.err then
    -- Out of memory: a release must work all the same, and DEL always may.
    redis.call('DEL', lock)
  end
end
