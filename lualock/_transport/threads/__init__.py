"""The transport for threads: see :mod:`lualock._transport.threads.driver`."""
