-- withdraw: take a request to release back
-- KEYS[1] asked  the key of the request
-- ARGV[1] token  who asked
-- Returns 'withdrawn'   the request is gone
-- Returns 'superseded'  somebody else has asked since, and that stands
-- Returns 'missing'     there is none any more

local asked = KEYS[1]
local token = ARGV[1]

local request = redis.call('GET', asked)
if not request then
  return 'missing'
elseif string.sub(request, 17) ~= token then
  return 'superseded'
end
redis.call('DEL', asked)
return 'withdrawn'
