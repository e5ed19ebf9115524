-- fence: the fence of the next lease: the server's time, or one more than the last fence if that is
-- not smaller.
-- Needs last_fence (of the record, or nil). Binds now, time_us and fence.
--@include time
local fence = time_us
if last_fence and last_fence >= fence then
  -- The clock stepped back, or two leases begin in one microsecond.
  fence = string.format('%016.0f', tonumber(last_fence) + 1)
end
