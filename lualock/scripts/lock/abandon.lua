-- abandon: stop waiting: leave the queue and, if the lock was given to this token, give it on
-- KEYS[1] lock    the lock's key
-- KEYS[2] queue   the tickets of those who wait
-- ARGV[1] token   the token that waited
-- ARGV[2] ticket  its ticket, or '' if it has none
-- ARGV[3] fair    as for hand_over
-- ARGV[4] kept    the one lease of this token that it keeps, fence and token as one word, or ''
-- ARGV[5] proof  a number of the request, fresh each time it is sent
-- Returns 'released'                             the lock was ours and is not any more
-- Returns {'left', ttl_ms, held_ms, about, ahead}  another has it, or it is kept; ahead -1: not queued
-- Returns {'left'}                               it is free
-- Returns {'conflict'}                           a key holds what is not lualock's

local lock = KEYS[1]
local queue = KEYS[2]
local token = ARGV[1]
local ticket = ARGV[2]
local fair = ARGV[3]
local kept = ARGV[4]
local proof = ARGV[5]

--@include record
--@include queue

local record = redis.call('GET', lock)
local state = record and string.sub(record, 1, 1)
if record then
  if #record < 39 or not tonumber(string.sub(record, 2, 17)) or not string.find(state, '[HWRF]') then
    return {proof, 'conflict'}
  end
end

local ahead = redis.call('ZRANK', queue, ticket)
local held = state == HELD or state == HELD_WAITED
local ours = held and string.sub(record, 18, 39) == token and string.sub(record, 2, 39) ~= kept
if ahead then
  redis.call('ZREM', queue, ticket)
end
if not held or (ahead == 0 and not ours) then
  local own
  local now, left_ms = redis.call('TIME'), held and redis.call('PTTL', lock) or 0
  --@include tell_first
end
if not held then
  return {proof, 'left'}
elseif ours then
  --@include give_up
  return proof .. 'released'
end
local now = redis.call('TIME')
local held_ms = (now[1] * 1000000 + now[2] - string.sub(record, 2, 17)) / 1000
local about = string.sub(record, 62)
return {proof, 'left', redis.call('PTTL', lock), math.floor(held_ms), about, ahead or -1}
