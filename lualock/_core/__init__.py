"""Shared by both APIs: options, the lock, the lease, its renewal. No I/O."""
