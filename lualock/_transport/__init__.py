"""The transport: the drivers, the only code that uses redis-py and hiredis.

``endpoint`` knows where the server is and makes connections, ``codec`` packs calls and checks
replies, ``errors`` translates errors. ``threads`` and ``asyncio`` run the protocol's steps.
"""
