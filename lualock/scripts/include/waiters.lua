-- waiters: the queue of a lock, a sorted set that exists only while a waiter is in it.
--   member  the ticket: token (22 characters), ttl_ms, a space, channel, a space, holder_info
--   score   the place: the priority, then the time of arrival in ticks of 0.1 ms
-- A waiter's process subscribes to the channel. A message is the waiter's token, followed by
--   '=' left_ms        the waiter is the head now, and the lock is held for left_ms
--   fence and time_us  the waiter has had the lock since time_us, and must claim it
--   fence and '+'      the waiter has the lock for its whole ttl: there is nothing to claim

-- How long a lock that was handed over lasts until its new holder claims it.
local CLAIM_MS = 2500
-- Every waiter checks the queue more often than that, so the key lives as long as one of them.
local WAITERS_TTL_MS = '180000'
-- How many places a priority has: ticks for more than 50 years.
local BAND = 17592186044416
-- A waiter that is younger (60 ms) is not notified: it checks on its own soon after that age.
local YOUNG_TICKS = 600

-- The server's time in ticks of 0.1 ms since 2025.
local function ticks(time)
  return (time[1] - 1735689600) * 10000 + math.floor(time[2] / 100)
end

-- The token, ttl_ms, channel and holder_info of a ticket.
local function open_ticket(ticket)
  local first = string.find(ticket, ' ', 23, true)
  local second = string.find(ticket, ' ', first + 1, true)
  local token, ttl_ms = string.sub(ticket, 1, 22), string.sub(ticket, 23, first - 1)
  return token, ttl_ms, string.sub(ticket, first + 1, second - 1), string.sub(ticket, second + 1)
end
