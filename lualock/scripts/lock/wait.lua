-- wait: take the lock if it is the caller's turn, else take a place in the queue, or check it again
-- KEYS[1] lock         the lock's key
-- KEYS[2] waiters      the tickets of the waiters
-- ARGV[1] ticket       the caller's ticket, the same at every call
-- ARGV[2] score        the score of its place, or the lowest score of its priority if it has no place
-- ARGV[3] max_waiters  how many may wait, or 0: any number
-- ARGV[4] deadline     the server's time, 16 digits, until which the caller waits for the reply
-- ARGV[5] proof        a number of the request, fresh each time it is sent
-- Returns fence                     the caller has the lock now; 16 digits
-- Returns {'owned', ttl_ms, fence}  this token has it already; this call has claimed it
-- Returns {'queued', ttl_ms, held_ms, holder_info, fence, ahead, score}  another token has it
-- Returns {'late', time_us}         the deadline is over: no change
-- Returns {'full', ttl_ms, held_ms, holder_info, count}  too many wait already
-- Returns {'conflict'}              a key holds what lualock did not write

local lock = KEYS[1]
local waiters = KEYS[2]
local ticket = ARGV[1]
local score = ARGV[2]
local max_waiters = ARGV[3]
local deadline = ARGV[4]
local proof = ARGV[5]

-- How many waiters of a full queue are checked for a process that is gone, at most.
local SWEEP = 32

--@include record
--@include waiters

local record = redis.call('GET', lock)
local state, last_fence
if record then
  state = string.sub(record, 1, 1)
  last_fence = string.sub(record, 2, 17)
  if #record < 39 or not tonumber(last_fence) then
    return {proof, 'conflict'}
  end
end
local own_token = string.sub(ticket, 1, 22)
local held = state == HELD or state == HELD_WAITED
if record and not held and state ~= RELEASED and state ~= RELEASED_WAITED then
  return {proof, 'conflict'}
end
--@include fence
if time_us > deadline then
  -- The caller has given up, and would neither leave the queue nor release the lock.
  return {proof, 'late', time_us}
elseif held and string.sub(record, 18, 39) == own_token then
  local _, ttl_ms = open_ticket(ticket)
  -- ZREM before any write: it fails if lualock did not write the key of the waiters.
  local was_queued = redis.call('ZREM', waiters, ticket) == 1
  --@include extend_at_least
  if was_queued then
    -- An earlier request of this caller, whose reply was lost, has taken the lock.
    --@include notify_head
  end
  return {proof, 'owned', tonumber(left_ms), last_fence}
end

local previous_token = record and string.sub(record, 18, 39) or NO_TOKEN
if not held then
  local other_waiters = redis.call('ZCARD', waiters)
  if other_waiters > 0 and redis.call('ZSCORE', waiters, ticket) then
    other_waiters = other_waiters - 1
  end
  if other_waiters == 0 then
    local _, ttl_ms, channel, holder_info = open_ticket(ticket)
    local granted = HELD .. fence .. own_token .. previous_token .. holder_info
    redis.call('SET', lock, granted, 'PX', ttl_ms)
    redis.call('ZREM', waiters, ticket)
    -- Publish the fence as well, for a caller that does not read the reply at once.
    redis.pcall('PUBLISH', channel, own_token .. fence .. '+')
    return proof .. fence
  end
end

local held_ms = 0
if held then
  held_ms = math.floor((tonumber(fence) - tonumber(last_fence)) / 1000)
end

local given_score = tonumber(score)
local newcomer = given_score % BAND == 0  -- the lowest score of a priority
if max_waiters ~= '0' and newcomer and not redis.call('ZSCORE', waiters, ticket) then
  local limit = tonumber(max_waiters)
  if redis.call('ZCARD', waiters) >= limit then
    -- Waiters whose process is gone do not count. Only the first ones are checked, because a
    -- newcomer must not cost more the longer the queue is.
    local head_dropped = false
    for rank, other_ticket in ipairs(redis.call('ZRANGE', waiters, 0, SWEEP - 1)) do
      local _, _, channel = open_ticket(other_ticket)
      if redis.pcall('PUBSUB', 'NUMSUB', channel)[2] == 0 then
        redis.call('ZREM', waiters, other_ticket)
        head_dropped = head_dropped or rank == 1
      end
    end
    if head_dropped then
      local left_ms = held and redis.call('PTTL', lock) or 0
      --@include notify_head
    end
    local count = redis.call('ZCARD', waiters)
    if count >= limit then
      local holder_info = held and string.sub(record, 62) or ''
      return {proof, 'full', held and redis.call('PTTL', lock) or 0, held_ms, holder_info, count}
    end
  end
end

if newcomer then
  -- Behind every waiter of its priority, even if the clock was set back.
  local arrival = given_score + ticks(now)
  local last_score = tonumber(redis.call('ZREVRANGE', waiters, 0, 0, 'WITHSCORES')[2])
  if last_score and last_score >= given_score + BAND then
    -- That waiter has a lower priority: find the last one of the caller's priority.
    local limit = string.format('(%.0f', given_score + BAND)
    local found = redis.call('ZREVRANGEBYSCORE', waiters, limit, score, 'WITHSCORES', 'LIMIT', 0, 1)
    last_score = tonumber(found[2])
  end
  if last_score and last_score >= arrival then
    arrival = last_score + 1
  end
  score = string.format('%.0f', arrival)
end
if redis.call('ZADD', waiters, 'NX', score, ticket) == 0 and newcomer then
  score = redis.call('ZSCORE', waiters, ticket)  -- a repeated request: it has a place already
end
redis.call('PEXPIRE', waiters, WAITERS_TTL_MS)

if not held then
  -- The last lease ended while waiters were in line: the first that can be reached gets the lock.
  local next_holder
  --@include grant_next
  if next_holder == own_token then
    return proof .. fence
  elseif not next_holder then
    -- The server's rules forbid messages: the caller's turn comes when those ahead have checked.
    local ahead = redis.call('ZRANK', waiters, ticket)
    return {proof, 'queued', 0, 0, '', last_fence or fence, ahead, score}
  end
  record, last_fence, held_ms = redis.call('GET', lock), fence, 0
elseif state == HELD then
  redis.call('SETRANGE', lock, 0, HELD_WAITED)
end
local ahead = redis.call('ZRANK', waiters, ticket)
local left_ms, holder_info = redis.call('PTTL', lock), string.sub(record, 62)
return {proof, 'queued', left_ms, held_ms, holder_info, last_fence, ahead, score}
