-- enqueue: take the lock if it is our turn, else have a place in the queue; also to look again
-- KEYS[1] lock         the lock's key
-- KEYS[2] queue        the tickets of those who wait
-- ARGV[1] ticket       what stands in the queue for the token that waits, the same at every call
-- ARGV[2] place        the place it had before, or where the places of its priority begin
-- ARGV[3] max_waiters  how many may wait, or 0: any number
-- ARGV[4] fair         '1': in turn; '0': whoever comes when it is free
-- ARGV[5] deadline     the server's time, 16 digits, after which nobody waits for the reply any more
-- ARGV[6] proof  a number of the request, fresh each time it is sent
-- Returns fence                                               it is ours now; 16 digits
-- Returns {'owned', ttl_ms, fence}                            this token has it already: claimed
-- Returns {'queued', ttl_ms, held_ms, about, fence, ahead, place}  somebody else has it
-- Returns {'late', time_us}                                   the deadline has passed: nothing was done
-- Returns {'full', ttl_ms, held_ms, about, waiters}           too many wait already
-- Returns {'conflict'}                                        a key holds what is not lualock's

local lock = KEYS[1]
local queue = KEYS[2]
local ticket = ARGV[1]
local place = ARGV[2]
local max_waiters = ARGV[3]
local fair = ARGV[4]
local deadline = ARGV[5]
local proof = ARGV[6]

--@include record
--@include queue

local record = redis.call('GET', lock)
local state, last
if record then
  state = string.sub(record, 1, 1)
  last = string.sub(record, 2, 17)
  if #record < 39 or not tonumber(last) then
    return {proof, 'conflict'}
  end
end
local own = string.sub(ticket, 1, 22)
local held = state == HELD or state == HELD_WAITED
if record and not held and state ~= RELEASED and state ~= RELEASED_WAITED then
  return {proof, 'conflict'}
end
--@include fence
if time_us > deadline then
  -- Who asked has given up, and nobody would leave the queue, or give the lock back, for it.
  return {proof, 'late', time_us}
elseif held and string.sub(record, 18, 39) == own then
  local _, ttl_ms = open_ticket(ticket)
  local waited = redis.call('ZREM', queue, ticket) == 1  -- first, for it fails at a foreign queue
  --@include lengthen
  if waited then
    -- A request of before it waited, which was thought lost, took the lock.
    --@include tell_first
  end
  return {proof, 'owned', tonumber(left_ms), last}
end

local before = record and string.sub(record, 18, 39) or NOBODY
if not held then
  local others = redis.call('ZCARD', queue)
  if others > 0 and redis.call('ZSCORE', queue, ticket) then
    others = others - 1
  end
  if others == 0 or fair ~= '1' then
    local taken = others > 0 and HELD_WAITED or HELD
    local _, ttl_ms, channel, about = open_ticket(ticket)
    redis.call('SET', lock, taken .. fence .. own .. before .. about, 'PX', ttl_ms)
    redis.call('ZREM', queue, ticket)
    -- Said by a message too, for who does not read the reply at once.
    redis.pcall('PUBLISH', channel, own .. fence .. '+')
    if others > 0 then
      local left_ms = ttl_ms
      --@include tell_first
    end
    return proof .. fence
  end
end

local held_ms = 0
if held then
  held_ms = math.floor((tonumber(fence) - tonumber(last)) / 1000)
end

local start = tonumber(place)
local comes = start % BAND == 0
if max_waiters ~= '0' and comes and not redis.call('ZSCORE', queue, ticket) then
  local limit = tonumber(max_waiters)
  if redis.call('ZCARD', queue) >= limit then
    -- Those whose process is gone do not count.
    local first_gone = false
    for at, other in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
      local _, _, channel = open_ticket(other)
      if redis.pcall('PUBSUB', 'NUMSUB', channel)[2] == 0 then
        redis.call('ZREM', queue, other)
        first_gone = first_gone or at == 1
      end
    end
    if first_gone then
      local left_ms = held and redis.call('PTTL', lock) or 0
      --@include tell_first
    end
    local waiters = redis.call('ZCARD', queue)
    if waiters >= limit then
      local holder = held and string.sub(record, 62) or ''
      return {proof, 'full', held and redis.call('PTTL', lock) or 0, held_ms, holder, waiters}
    end
  end
end

if comes then
  -- After everybody of its priority, whatever the clock says.
  local score = start + ticks(now)
  local behind = tonumber(redis.call('ZREVRANGE', queue, 0, 0, 'WITHSCORES')[2])
  if behind and behind >= start + BAND then
    -- Others of a lower priority wait behind it.
    local ends = string.format('(%.0f', start + BAND)
    local found = redis.call('ZREVRANGEBYSCORE', queue, ends, place, 'WITHSCORES', 'LIMIT', 0, 1)
    behind = tonumber(found[2])
  end
  if behind and behind >= score then
    score = behind + 1
  end
  place = string.format('%.0f', score)
end
if redis.call('ZADD', queue, 'NX', place, ticket) == 0 and comes then
  place = redis.call('ZSCORE', queue, ticket)  -- a repeated request: it has a place already
end
redis.call('PEXPIRE', queue, QUEUE_MS)

if not held then
  -- The lease ended by itself while others wait: the first of them who can be reached has it now.
  --@include pass_on
  if given == own then
    return proof .. fence
  elseif not given then
    -- Nobody can be told; our turn comes when those before us have looked.
    return {proof, 'queued', 0, 0, '', last or fence, redis.call('ZRANK', queue, ticket), place}
  end
  record, last, held_ms = redis.call('GET', lock), fence, 0
elseif state == HELD then
  redis.call('SETRANGE', lock, 0, HELD_WAITED)
end
local ahead = redis.call('ZRANK', queue, ticket)
return {proof, 'queued', redis.call('PTTL', lock), held_ms, string.sub(record, 62), last, ahead, place}
