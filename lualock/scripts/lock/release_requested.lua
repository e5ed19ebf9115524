-- release_requested: say whether the holder of a lease is asked to release it
-- KEYS[1] asked  the key of the request
-- ARGV[1] fence  the fence of the lease, 16 digits
-- ARGV[2] token  the token of the lease
-- ARGV[3] proof  a number of the request, fresh each time it is sent
-- Returns 'requested'      somebody has asked since the lease began
-- Returns 'not_requested'  nobody has
-- Returns {'conflict'}     the key holds what lualock did not write

local asked = KEYS[1]
local fence = ARGV[1]
local token = ARGV[2]
local proof = ARGV[3]

local ONE = '(' .. string.rep('.', 16) .. ')(' .. string.rep('.', 22) .. ')'

local request = redis.call('GET', asked)
if not request then
  return proof .. 'not_requested'
elseif #request % 38 ~= 0 or not tonumber(string.sub(request, 1, 16)) then
  return {proof, 'conflict'}
end
for time, asker in string.gmatch(request, ONE) do
  if time > fence and asker ~= token then
    return proof .. 'requested'
  end
end
return proof .. 'not_requested'
