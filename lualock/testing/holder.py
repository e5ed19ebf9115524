"""The program of :class:`lualock.testing.OtherProcess`: hold a lock until standard input ends.

So the process does not outlive the test that started it.
"""

from __future__ import annotations

import contextlib
import json
import sys

import lualock


def main() -> None:
    request = json.loads(sys.argv[1])
    key = bytes.fromhex(request["key"])
    with lualock.connect(prefix=request["prefix"]) as locks:
        lock = locks.lock_at(key, request["ttl"], metadata=request["metadata"])
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
