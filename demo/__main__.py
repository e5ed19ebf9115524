"""Run the demo; the exit status is 0 only if what it shows is what happened."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import redis

import lualock
from demo.story import Story
from lualock import embedded


def main() -> int:
    """Start a private server, run the demo, and leave nothing behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="lualock-demo-", dir="/tmp") as home:
        # The demo's server is its own: neither a configured one nor that of the user's programs.
        os.environ["LUALOCK_EMBEDDED_DIR"] = str(Path(home) / "server")
        events = Path(home) / "events"
        events.mkdir()
        with (
            embedded.start() as server,
            redis.Redis.from_url(server.url) as stream,
            lualock.connect("embedded://") as locks,
        ):
            story = Story(events, locks, stream, server.url)
            try:
                well = story.run()
            except RuntimeError as problem:
                print(f"the demo stopped: {problem}")
                well = False
            finally:
                story.close()
    print("\nWhat was shown is what happened." if well else "\nA check failed, see above.")
    return 0 if well else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
