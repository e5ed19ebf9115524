"""The transport for asyncio."""
