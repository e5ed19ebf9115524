-- fenced_set: set a key, unless a holder with a greater fence has set it before
-- KEYS[1] key    what is to be set: a plain string key
-- KEYS[2] seen   where the greatest fence that has been seen is kept
-- ARGV[1] value  what it is set to
-- ARGV[2] fence  the writer's fence, a whole number of at most 16 digits
-- ARGV[3] ttl_ms for how long the value lasts, or 0: without an end
-- Returns 'set'            it was set
-- Returns {'stale', fence}  a greater fence has been seen, and nothing was changed
-- Returns {'conflict'}      what stands beside the key is no fence; nothing was changed

local key = KEYS[1]
local seen = KEYS[2]
local value = ARGV[1]
local fence = ARGV[2]
local ttl_ms = ARGV[3]

local greatest = redis.call('GET', seen)
if greatest and not tonumber(greatest) then
  return {'conflict'}
elseif greatest and tonumber(greatest) > tonumber(fence) then
  return {'stale', greatest}
end
-- The fence first: if the server is out of memory this fails, and nothing is written.
redis.call('SET', seen, fence)
if ttl_ms == '0' then
  redis.call('SET', key, value)
else
  redis.call('SET', key, value, 'PX', ttl_ms)
end
return 'set'
