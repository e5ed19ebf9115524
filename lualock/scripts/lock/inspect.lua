-- inspect: describe the holder, without the token, with which the reader could release the lock
-- KEYS[1] lock     the lock's key
-- KEYS[2] waiters  the tickets of the waiters
-- ARGV[1] proof    a number of the request, fresh each time it is sent
-- Returns {'free', count}                                       it is free; count waiters
-- Returns {'held', ttl_ms, held_ms, fence, holder_info, count}  it is held; ttl_ms -1: no end
-- Returns {'conflict'}                                          the key holds what lualock did not
--   write

local lock = KEYS[1]
local waiters = KEYS[2]
local proof = ARGV[1]

--@include record

local record = redis.call('GET', lock)
local count = redis.call('ZCARD', waiters)
if not record then
  return {proof, 'free', count}
end

local state = string.sub(record, 1, 1)
local fence = string.sub(record, 2, 17)
local fence_us = tonumber(fence)
if #record < 39 or not fence_us or not string.find(state, '[HWRF]') then
  return {proof, 'conflict'}
elseif state == RELEASED or state == RELEASED_WAITED then
  return {proof, 'free', count}
end
local now = redis.call('TIME')
local held_ms = math.floor((now[1] * 1000000 + now[2] - fence_us) / 1000)
return {proof, 'held', redis.call('PTTL', lock), held_ms, fence, string.sub(record, 62), count}
