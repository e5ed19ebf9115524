-- record: the layout of the value at a lock's key, one string of fixed-width fields.
--    1        state           H held, W held with waiters, R released, F released with waiters
--    2 .. 17  fence           16 digits: microseconds since 1970 by the server's clock, or more
--   18 .. 39  token           22 characters: the lease that has the lock, or had it last
--   40 .. 61  previous_token  the lease before it, so that a repeated release of that is recognised
--   62 ..     holder_info     free text that the holder sent
-- R and F are tombstones. They have no holder_info, and seldom a previous_token.
-- A state with waiters says that there may be some: the queue may have become empty since.
local NO_TOKEN = '----------------------'
local HELD, HELD_WAITED, RELEASED, RELEASED_WAITED = 'H', 'W', 'R', 'F'
-- How long a tombstone lives: long enough for a request that is repeated after a lost reply, short
-- enough that idle locks do not fill the memory.
local TOMBSTONE_MS = '5000'
