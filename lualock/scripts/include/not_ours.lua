-- not_ours: whose the record is when the lease did not match. Ends the script.
-- Needs record, state, token and the constants of `record`.
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
