-- not_ours: whose the record is when the token did not match. Ends the script.
-- Needs record, state and the constants of `record`.
if #record < 39 or not tonumber(string.sub(record, 2, 17)) then
  return {'conflict'}
elseif state == HELD then
  return {'held', string.sub(record, 40)}
elseif state == RELEASED then
  return 'missing'
end
return {'conflict'}
