"""Which rivals work here: each is tried once, in its own process, so that none can stop the run."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench import rivals
from bench.processes import CONTEXT
from bench.rivals import apart
from bench.setting import Broken, Setting

LIMIT_S = 20.0


def call(setting: Setting) -> None:
    """Leave the working rivals in the setting; record the others with their errors."""
    for name, answer in apart.refused().items():
        where = f"installing ({apart.WHY_APART[name]})"
        setting.broken.append(Broken(name, where, answer))
    tried = [(name, _try_sync) for name in setting.sync]
    tried += [(name, _try_tasks) for name in setting.tasks]
    running = []
    for name, attempt in tried:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(
            target=_try, args=(attempt, name, setting.server.tcp_url, theirs), daemon=True
        )
        process.start()
        theirs.close()
        running.append((name, process, ours))
    give_up = time.monotonic() + LIMIT_S
    for name, process, ours in running:
        error = f"no pair was done within {LIMIT_S:.0f} s"
        if ours.poll(max(0.0, give_up - time.monotonic())):
            try:
                error = ours.recv()
            except EOFError:
                error = "its process ended"
        process.kill()
        process.join()
        if error:
            setting.breaks(name, "a single pair", error)
            for names in (setting.sync, setting.tasks):
                if name in names:
                    names.remove(name)


def _try(attempt: Any, name: str, url: str, pipe: Any) -> None:
    try:
        attempt(name, url)
    except BaseException as error:  # any error is the answer
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("")


def _key(name: str) -> str:
    """Return a name of letters only: two rivals cannot have spaces or colons in the name of a
    lock."""
    return "probe" + "".join(filter(str.isalnum, name))


def _try_sync(name: str, url: str) -> None:
    rival = rivals.sync(name, url)
    pair = rival.pair(_key(name))
    pair()
    pair()
    rival.close()


def _try_tasks(name: str, url: str) -> None:
    async def attempt() -> None:
        rival = rivals.tasks(name, url)
        use = rival.reusable(_key(name))
        for _ in range(2):
            async with use():
                pass
        await rival.close()

    asyncio.run(attempt())
