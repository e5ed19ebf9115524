-- inspect: say who has the lock, without the token that would let the reader release it
-- KEYS[1] lock  the lock's key
-- Returns 'free'                                   nobody has it
-- Returns {'held', ttl_ms, held_ms, fence, about}  somebody has it; ttl_ms is -1 for no limit
-- Returns {'conflict'}                             the key holds what lualock did not write

local lock = KEYS[1]

--@include record

local record = redis.call('GET', lock)
if not record then
  return 'free'
end

local state = string.sub(record, 1, 1)
local fence = string.sub(record, 2, 17)
local fence_us = tonumber(fence)
if #record < 39 or not fence_us or (state ~= HELD and state ~= RELEASED) then
  return {'conflict'}
end
if state == RELEASED then
  return 'free'
end
local now = redis.call('TIME')
local held_ms = math.floor((now[1] * 1000000 + now[2] - fence_us) / 1000)
return {'held', redis.call('PTTL', lock), held_ms, fence, string.sub(record, 40)}
