-- queue: those who wait, as one sorted set that exists only while somebody does.
--   member  the ticket: token (22 characters), ttl_ms, a space, channel, a space, about
--   score   the place: priority first, then the time of arrival in ticks of 0.1 ms
-- A channel is where a waiter's process listens. A message is the token that it is about, followed
-- by the fence if that token has the lock now; without a fence it says: look again.

-- How long a waiter that was given the lock has until it must have claimed it.
local CLAIM_MS = 2500
-- Every waiter looks again more often than that, so the set lives as long as one of them does.
local QUEUE_MS = '180000'
-- How many places one priority has: ticks for more than 50 years.
local BAND = 17592186044416

local function open_ticket(ticket)
  local first = string.find(ticket, ' ', 23, true)
  local second = string.find(ticket, ' ', first + 1, true)
  local token, ttl_ms = string.sub(ticket, 1, 22), string.sub(ticket, 23, first - 1)
  return token, ttl_ms, string.sub(ticket, first + 1, second - 1), string.sub(ticket, second + 1)
end

-- Give the free lock to the first who can be reached; who cannot is dropped, for his process is
-- gone (if it is only reconnecting, it comes back with its place). Whose token is `own` needs no
-- message: it is asking, and gets its whole ttl. `before` is who released it. Returns the token that has the lock now, or nil.
local function pass_on(lock, queue, fence, before, own)
  while true do
    local first = redis.call('ZPOPMIN', queue)
    if not first[1] then
      return nil
    end
    local token, ttl_ms, channel, about = open_ticket(first[1])
    local heard = token == own and 1 or redis.pcall('PUBLISH', channel, token .. fence)
    if type(heard) ~= 'number' then
      -- The server's rules forbid the message: the waiter finds out when it looks again.
      redis.call('ZADD', queue, first[2], first[1])
      return nil
    elseif heard > 0 then
      if token ~= own and tonumber(ttl_ms) > CLAIM_MS then
        ttl_ms = CLAIM_MS
      end
      redis.call('SET', lock, HELD_WAITED .. fence .. token .. before .. about, 'PX', ttl_ms)
      return token
    end
  end
end

-- Tell the first who can be reached that the lock is free for whoever comes; drop who cannot.
local function tell_first(queue)
  while true do
    local ticket = redis.call('ZRANGE', queue, 0, 0)[1]
    if not ticket then
      return
    end
    local token, _, channel = open_ticket(ticket)
    if redis.pcall('PUBLISH', channel, token) ~= 0 then
      return
    end
    redis.call('ZREM', queue, ticket)
  end
end

-- Drop those whose process is gone, so that they do not count.
local function drop_dead(queue)
  for _, ticket in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local _, _, channel = open_ticket(ticket)
    if redis.pcall('PUBSUB', 'NUMSUB', channel)[2] == 0 then
      redis.call('ZREM', queue, ticket)
    end
  end
end
