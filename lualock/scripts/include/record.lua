-- record: how the value at a lock's key is laid out. One string, fixed width up to `about`.
--    1        state   H held, W held while others wait, R released, F released while others wait
--    2 .. 17  fence   16 digits, microseconds since 1970 at the server, or more
--   18 .. 39  token   22 characters
--   40 .. 61  before  the token that released it to this one, for a release that is repeated
--   62 ..     about   who holds it; before and about are absent from R and F, the tombstones
local NOBODY = '----------------------'
local HELD, HELD_WAITED, RELEASED, RELEASED_WAITED = 'H', 'W', 'R', 'F'
-- How long a released lock remembers its fence and token: long enough for a request that is
-- repeated after a lost reply, short enough that idle locks do not fill the memory.
local TOMBSTONE_MS = '5000'
