-- record: how the value at a lock's key is laid out. One string, fixed width up to `about`.
--    1        state   H held, R released (a tombstone: the lock is free)
--    2 .. 17  fence   16 digits, microseconds since 1970 at the server, or more
--   18 .. 39  token   22 characters
--   40 ..     about   who holds it; absent from a tombstone
local HELD, RELEASED = 'H', 'R'
-- How long a released lock remembers its fence and token: long enough for a request that is
-- repeated after a lost reply, short enough that idle locks do not fill the memory.
local TOMBSTONE_MS = '5000'
