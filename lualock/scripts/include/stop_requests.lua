-- stop_requests: the layout of the value at the key of a lock's stop requests: entries of 38
-- characters, the latest first.
--   16  time   the server's time in microseconds, or more: later than that of every entry behind it
--   22  token  the caller that made the request
-- An entry asks each holder whose fence is smaller than its time, but not the caller itself. So it
-- need not be taken back for the holders that come later.
local ENTRY = '(' .. string.rep('.', 16) .. ')(' .. string.rep('.', 22) .. ')'
