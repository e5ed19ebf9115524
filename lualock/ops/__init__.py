"""Tools for operators of a server: the ACL rule for a user that needs locks only."""
