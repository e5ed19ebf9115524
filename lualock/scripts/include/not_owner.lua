-- not_owner: make the reply to a lease that does not have the lock.
-- Needs the include `record`.
--   record  the value at the lock's key
--   token   the token of the lease
local function not_owner(proof, record, token)
  local state = string.sub(record, 1, 1)
  if #record < 39 or not tonumber(string.sub(record, 2, 17)) then
    return {proof, 'conflict'}
  elseif string.sub(record, 40, 61) == token then
    return proof .. 'already'
  elseif state == HELD or state == HELD_WAITED then
    return {proof, 'held', string.sub(record, 62)}
  elseif state == RELEASED or state == RELEASED_WAITED then
    return proof .. 'missing'
  end
  return {proof, 'conflict'}
end
