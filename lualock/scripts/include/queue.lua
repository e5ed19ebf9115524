-- queue: those who wait, as one sorted set that exists only while somebody does.
--   member  the ticket: token (22 characters), ttl_ms, a space, channel, a space, about
--   score   the place: priority first, then the time of arrival in ticks of 0.1 ms
-- A channel is where a waiter's process listens. A message is the token that it is about, followed
-- by the fence if that token has the lock now. Then comes the server's time at which it was given,
-- or '+' if it has it for its whole ttl, so that there is nothing to claim. Without a fence it says:
-- look again; or, by '=' and a number, that it is first now, and for how many milliseconds the lock
-- is held.

-- How long a waiter that was given the lock has until it must have claimed it.
local CLAIM_MS = 2500
-- Every waiter looks again more often than that, so the set lives as long as one of them does.
local QUEUE_MS = '180000'
-- How many places one priority has: ticks for more than 50 years.
local BAND = 17592186044416
-- Who has waited for less (0.2 s) looks again by itself when it has waited for a little more.
local YOUNG_TICKS = 2000

-- The server's time in ticks of 0.1 ms since 2025.
local function ticks(time)
  return (time[1] - 1735689600) * 10000 + math.floor(time[2] / 100)
end

local function open_ticket(ticket)
  local first = string.find(ticket, ' ', 23, true)
  local second = string.find(ticket, ' ', first + 1, true)
  local token, ttl_ms = string.sub(ticket, 1, 22), string.sub(ticket, 23, first - 1)
  return token, ttl_ms, string.sub(ticket, first + 1, second - 1), string.sub(ticket, second + 1)
end
