-- inspect: say who has the lock, without the token that would let the reader release it
-- KEYS[1] lock   the lock's key
-- KEYS[2] queue  the tickets of those who wait
-- ARGV[1] proof  a number of the request, fresh each time it is sent
-- Returns {'free', waiters}                                 nobody has it
-- Returns {'held', ttl_ms, held_ms, fence, about, waiters}  somebody has it; ttl_ms -1: no limit
-- Returns {'conflict'}                                      the key holds what is not lualock's

local lock = KEYS[1]
local queue = KEYS[2]
local proof = ARGV[1]

--@include record

local record = redis.call('GET', lock)
local waiters = redis.call('ZCARD', queue)
if not record then
  return {proof, 'free', waiters}
end

local state = string.sub(record, 1, 1)
local fence = string.sub(record, 2, 17)
local fence_us = tonumber(fence)
if #record < 39 or not fence_us or not string.find(state, '[HWRF]') then
  return {proof, 'conflict'}
elseif state == RELEASED or state == RELEASED_WAITED then
  return {proof, 'free', waiters}
end
local now = redis.call('TIME')
local held_ms = math.floor((now[1] * 1000000 + now[2] - fence_us) / 1000)
return {proof, 'held', redis.call('PTTL', lock), held_ms, fence, string.sub(record, 62), waiters}
