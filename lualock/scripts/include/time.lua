-- time: the server's time, in microseconds. Binds now and time_us.
local now = redis.call('TIME')
-- Joined as text: formatting a number costs the server as much as a command. Each text has 16
-- digits, so the order of the texts is that of the numbers.
local time_us = now[1] .. string.sub('00000' .. now[2], -6)
