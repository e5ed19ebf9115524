"""The process behind :class:`lualock.testing.OtherProcess`: takes a lock, and keeps it until its
standard input ends, so that it does not outlive the test that started it."""

from __future__ import annotations

import contextlib
import json
import sys

import lualock
from lualock._core.keys import waiters_key


def main() -> None:
    told = json.loads(sys.argv[1])
    with lualock.connect(prefix=told["prefix"]) as locks:
        lock = locks.lock(bytes.fromhex(told["name"]), told["ttl"], metadata=told["metadata"])
        lock._key = bytes.fromhex(told["key"])
        lock._queue = waiters_key(lock._key)
        try:
            lease = lock.acquire(timeout=0)
        except lualock.LockError as error:
            _say({"error": str(error)})
            return
        _say({"fence": lease.fence})
        sys.stdin.read()
        with contextlib.suppress(lualock.LeaseLost):  # which is what some tests want
            lease.release()


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
