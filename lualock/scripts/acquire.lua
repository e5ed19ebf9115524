-- acquire: take the lock if it is free; asked again with the same token, answer the same lease
-- KEYS[1] lock    the lock's key
-- ARGV[1] token   22 characters, fresh for each acquisition, constant over its retries
-- ARGV[2] ttl_ms  how long the lease lasts, a whole number above 0
-- ARGV[3] about   who asks: free text, kept beside the lease for inspect
-- Returns fence                             it is ours now; 16 digits
-- Returns {'owned', ttl_ms, fence}          this token has it already
-- Returns {'held', ttl_ms, held_ms, about}  somebody else has it
-- Returns {'conflict'}                      the key holds what lualock did not write

local lock = KEYS[1]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local about = ARGV[3]

--@include record

local record = redis.call('GET', lock)
local now = redis.call('TIME')
-- Joined as text, not computed: formatting a number costs the server as much as a command.
-- Sixteen digits each, so text order is number order.
local fence = now[1] .. string.sub('00000' .. now[2], -6)

if record then
  local state = string.sub(record, 1, 1)
  local last = string.sub(record, 2, 17)
  local last_us = tonumber(last)
  if #record < 39 or not last_us or (state ~= HELD and state ~= RELEASED) then
    return {'conflict'}
  end
  if state == HELD then
    local left_ms = redis.call('PTTL', lock)
    if string.sub(record, 18, 39) == token then
      return {'owned', left_ms, last}
    end
    local held_ms = math.floor((tonumber(fence) - last_us) / 1000)
    return {'held', left_ms, held_ms, string.sub(record, 40)}
  end
  if last >= fence then
    -- The clock stepped back, or two acquisitions fell into one microsecond.
    fence = string.format('%016.0f', last_us + 1)
  end
end

redis.call('SET', lock, HELD .. fence .. token .. about, 'PX', ttl_ms)
return fence
