-- fence: the fence of the next lease: the server's time, or one more than the last fence if that is
-- not smaller.
-- Needs last_fence (of the record, or nil). Binds now, time_us and fence.
local now = redis.call('TIME')
-- Joined as text: formatting a number costs the server as much as a command. Each text has 16
-- digits, so the order of the texts is that of the numbers.
local time_us = now[1] .. string.sub('00000' .. now[2], -6)
local fence = time_us
if last_fence and last_fence >= fence then
  -- The clock stepped back, or two leases begin in one microsecond.
  fence = string.format('%016.0f', tonumber(last_fence) + 1)
end
