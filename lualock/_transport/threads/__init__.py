"""The transport for threads."""
