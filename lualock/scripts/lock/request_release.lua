-- request_release: ask whoever has the lock to stop and release it
-- KEYS[1] lock      the lock's key
-- KEYS[2] asked     the key of the request
-- ARGV[1] token     who asks: 22 characters, constant over retries
-- ARGV[2] lasts_ms  how long the request stands, a whole number above 0
-- ARGV[3] deadline  the server's time, 16 digits, after which nobody waits for the reply any more
-- ARGV[4] proof  a number of the request, fresh each time it is sent
-- Returns {'asked', about}   the holder is asked
-- Returns 'free'             nobody has the lock: nothing was done
-- Returns {'late', time_us}  the deadline has passed: nothing was done
-- Returns {'conflict'}       a key holds what lualock did not write

-- The value is one request after the other, the latest first: a time, 16 digits, and the token of who
-- asks. Meant is every holder whose fence is smaller than that time, but not the asker itself: so a
-- request needs no end, and asks nobody who comes after it. Those before it stay, for who asked last
-- may give up.

local lock = KEYS[1]
local asked = KEYS[2]
local token = ARGV[1]
local lasts_ms = ARGV[2]
local deadline = ARGV[3]
local proof = ARGV[4]

--@include record

local ONE = '(' .. string.rep('.', 16) .. ')(' .. string.rep('.', 22) .. ')'
-- So many are remembered at the most, in bytes.
local MOST = 16 * 38

local record = redis.call('GET', lock)
if not record then
  return proof .. 'free'
end
local state = string.sub(record, 1, 1)
local last = string.sub(record, 2, 17)
local request = redis.call('GET', asked)
if #record < 39 or not tonumber(last) or not string.find(state, '[HWRF]') then
  return {proof, 'conflict'}
elseif request and (#request % 38 ~= 0 or not tonumber(string.sub(request, 1, 16))) then
  return {proof, 'conflict'}
elseif state == RELEASED or state == RELEASED_WAITED then
  return proof .. 'free'
end
local held = last
if request and string.sub(request, 1, 16) > last then
  -- Later than those before it, which therefore know that they are superseded.
  last = string.sub(request, 1, 16)
end
--@include fence

local about = string.sub(record, 62)
local before = ''
for time, asker in string.gmatch(request or '', ONE) do
  if asker == token then
    return {proof, 'asked', about}
  elseif time > held and #before < MOST - 38 then
    before = before .. time .. asker
  end
end
if time_us > deadline then
  return {proof, 'late', time_us}
end
if before ~= '' and redis.call('PTTL', asked) > tonumber(lasts_ms) then
  lasts_ms = redis.call('PTTL', asked)
end
redis.call('SET', asked, fence .. token .. before, 'PX', lasts_ms)
return {proof, 'asked', about}
