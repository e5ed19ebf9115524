"""The transport for asyncio: see :mod:`lualock._transport.asyncio.driver`."""
