-- fence: what the next holder gets: the server's time, raised above what the record still has.
-- Needs last (the record's fence, or nil); binds now, time_us and fence.
local now = redis.call('TIME')
-- Joined as text, not computed: formatting a number costs the server as much as a command.
-- Sixteen digits each, so text order is number order.
local time_us = now[1] .. string.sub('00000' .. now[2], -6)
local fence = time_us
if last and last >= fence then
  -- The clock stepped back, or two acquisitions fell into one microsecond.
  fence = string.format('%016.0f', tonumber(last) + 1)
end
