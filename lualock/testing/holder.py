"""The program of :class:`lualock.testing.OtherProcess`: hold a lock until standard input ends.

So the process does not outlive the test that started it.
"""

from __future__ import annotations

import contextlib
import json
import sys

import lualock
from lualock._core.keys import waiters_key


def main() -> None:
    request = json.loads(sys.argv[1])
    name, ttl = bytes.fromhex(request["name"]), request["ttl"]
    with lualock.connect(prefix=request["prefix"]) as locks:
        lock = locks.lock(name, ttl, metadata=request["metadata"])
        lock._key = bytes.fromhex(request["key"])
        lock._queue = waiters_key(lock._key)
        try:
            lease = lock.acquire(timeout=0)
        except lualock.LockError as error:
            _send({"error": str(error)})
            return
        _send({"fence": lease.fence})
        sys.stdin.read()
        with contextlib.suppress(lualock.LeaseLost):  # a test may let the lease expire
            lease.release()


def _send(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
