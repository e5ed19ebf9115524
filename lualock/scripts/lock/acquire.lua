-- acquire: take the lock if it is free; a repeated request gets the lease that it has
-- KEYS[1] lock         the lock's key
-- ARGV[1] token        22 characters, fresh for each acquisition, constant over its retries
-- ARGV[2] ttl_ms       how long the lease lasts, a whole number above 0
-- ARGV[3] deadline     the server's time, 16 digits, until which the caller waits for the reply
-- ARGV[4] holder_info  free text about the caller, kept beside the lease for inspect
-- Returns fence                                   the caller has the lock now; 16 digits
-- Returns {'owned', ttl_ms, fence}                this token has it already
-- Returns {'held', ttl_ms, held_ms, holder_info}  another token has it
-- Returns {'late', time_us}                       it is free, but the deadline is over: no change
-- Returns {'conflict'}                            the key holds what lualock did not write

local lock = KEYS[1]
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local holder_info = ARGV[4]
local proof = token

--@include record

local record = redis.call('GET', lock)
local state, last_fence
if record then
  state = string.sub(record, 1, 1)
  last_fence = string.sub(record, 2, 17)
  if #record < 39 or not tonumber(last_fence) then
    return {proof, 'conflict'}
  end
end
--@include fence

local new_state, previous_token = HELD, NO_TOKEN
if record then
  previous_token = string.sub(record, 18, 39)
end
if record and state ~= RELEASED then
  if state == HELD or state == HELD_WAITED then
    local left_ms = redis.call('PTTL', lock)
    if previous_token == token then
      return {proof, 'owned', left_ms, last_fence}
    end
    local held_ms = math.floor((tonumber(fence) - tonumber(last_fence)) / 1000)
    return {proof, 'held', left_ms, held_ms, string.sub(record, 62)}
  elseif state ~= RELEASED_WAITED then
    return {proof, 'conflict'}
  end
  new_state = HELD_WAITED
end

if time_us > deadline then
  -- The caller has given up, and would not know that it has the lock.
  return {proof, 'late', time_us}
end
redis.call('SET', lock, new_state .. fence .. token .. previous_token .. holder_info, 'PX', ttl_ms)
return proof .. fence
