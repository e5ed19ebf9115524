-- acquire_all: take several locks in one step, or none of them
-- A lock can be taken if it is free, or held by the caller's own token or by the one that yields it.
-- KEYS[...] keys         for each lock two keys: its own, and that of the tickets of its waiters
-- ARGV[1] token          22 characters, fresh for each acquisition, constant over its retries
-- ARGV[2] ttl_ms         how long the lease lasts, a whole number above 0
-- ARGV[3] deadline       the server's time, 16 digits, until which the caller waits for the reply
-- ARGV[4] holder_info    free text about the caller, kept beside each lock for inspect
-- ARGV[5] yielding       for each lock the token, 22 characters, of a lease that yields it; or ''
-- ARGV[6] proof          a number of the request, fresh each time it is sent
-- Returns fence                                          the caller has all locks now; 16 digits
-- Returns {'owned', ttl_ms, fence}                       this token has all, with one fence, already
-- Returns {'held', ttl_ms, held_ms, holder_info, index}  another token has the lock of that index
-- Returns {'late', time_us}                              the deadline is over: no change
-- Returns {'conflict', index}                            a key holds what lualock did not write

local keys = KEYS
local token = ARGV[1]
local ttl_ms = ARGV[2]
local deadline = ARGV[3]
local holder_info = ARGV[4]
local yielding = ARGV[5]
local proof = ARGV[6]

--@include record
--@include waiters

-- The fence is greater than the last one of each lock, so that one fence serves for all.
local records, last_fence = {}, nil
for at = 1, #keys, 2 do
  local record = redis.call('GET', keys[at])
  if record then
    local fence = string.sub(record, 2, 17)
    if #record < 39 or not tonumber(fence) or not string.find(record, '^[HWRF]') then
      return {proof, 'conflict', (at - 1) / 2}
    end
    if not last_fence or fence > last_fence then
      last_fence = fence
    end
  end
  records[at] = record
end
--@include fence

local owned = true
for at = 1, #keys, 2 do
  local record = records[at]
  local state = record and string.sub(record, 1, 1)
  local held = state == HELD or state == HELD_WAITED
  local holder = held and string.sub(record, 18, 39)
  local first = (at - 1) * 11 + 1
  if held and holder ~= token and holder ~= string.sub(yielding, first, first + 21) then
    local held_us = math.max(0, tonumber(time_us) - tonumber(string.sub(record, 2, 17)))
    local lease_ms = redis.call('PTTL', keys[at])
    local holder_info = string.sub(record, 62)
    return {proof, 'held', lease_ms, math.floor(held_us / 1000), holder_info, (at - 1) / 2}
  elseif holder ~= token or string.sub(record, 2, 17) ~= last_fence then
    owned = false
  end
end
if owned then
  local left_ms
  for at = 1, #keys, 2 do
    local lease_ms = redis.call('PTTL', keys[at])
    if not left_ms or lease_ms < left_ms then
      left_ms = lease_ms
    end
  end
  return {proof, 'owned', left_ms, last_fence}
elseif time_us > deadline then
  -- The caller has given up, and would not know that it has the locks.
  return {proof, 'late', time_us}
end

-- Before the first write, for ZCARD fails at a key that lualock did not write.
local states = {}
for at = 1, #keys, 2 do
  local state = records[at] and string.sub(records[at], 1, 1)
  states[at] = HELD
  if state == HELD_WAITED or state == RELEASED_WAITED then
    states[at] = redis.call('ZCARD', keys[at + 1]) > 0 and HELD_WAITED or HELD
  end
end
for at = 1, #keys, 2 do
  local previous_token = records[at] and string.sub(records[at], 18, 39) or NO_TOKEN
  local record = states[at] .. fence .. token .. previous_token .. holder_info
  redis.call('SET', keys[at], record, 'PX', ttl_ms)
  if states[at] == HELD_WAITED then
    -- The head plans to check the queue when the lock would have been free before.
    local waiters, own_token, left_ms = keys[at + 1], nil, ttl_ms
    --@include notify_head
  end
end
return proof .. fence
