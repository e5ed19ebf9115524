-- abandon: stop waiting: leave the queue and, if this token has the lock, release it
-- KEYS[1] lock        the lock's key
-- KEYS[2] waiters     the tickets of the waiters
-- ARGV[1] token       the token that waited
-- ARGV[2] ticket      its ticket, or '' if it has none
-- ARGV[3] kept_lease  the one lease of this token that it keeps, fence and token as one word, or ''
-- ARGV[4] proof       a number of the request, fresh each time it is sent
-- Returns 'released'    this token had the lock, and does not have it any more
-- Returns {'left', ttl_ms, held_ms, holder_info, ahead}  another token has the lock, or kept_lease;
--   ahead: how many waiters were before this one; -1: it was not queued
-- Returns {'left'}      the lock is free
-- Returns {'conflict'}  a key holds what lualock did not write

local lock = KEYS[1]
local waiters = KEYS[2]
local token = ARGV[1]
local ticket = ARGV[2]
local kept_lease = ARGV[3]
local proof = ARGV[4]

--@include record
--@include waiters

local record = redis.call('GET', lock)
local state = record and string.sub(record, 1, 1)
if record then
  local last_fence = string.sub(record, 2, 17)
  if #record < 39 or not tonumber(last_fence) or not string.find(state, '[HWRF]') then
    return {proof, 'conflict'}
  end
end

local ahead = redis.call('ZRANK', waiters, ticket)
local held = state == HELD or state == HELD_WAITED
local owned = held and string.sub(record, 18, 39) == token
  and string.sub(record, 2, 39) ~= kept_lease
if ahead then
  redis.call('ZREM', waiters, ticket)
end
if ahead == 0 and not owned then
  local now, own_token = redis.call('TIME'), nil
  local left_ms = held and redis.call('PTTL', lock) or 0
  --@include notify_head
end
if not held then
  return {proof, 'left'}
elseif owned then
  --@include release_and_grant_next
  return proof .. 'released'
end
local now = redis.call('TIME')
local held_ms = math.floor((now[1] * 1000000 + now[2] - string.sub(record, 2, 17)) / 1000)
return {proof, 'left', redis.call('PTTL', lock), held_ms, string.sub(record, 62), ahead or -1}
