"""Generate the threads API (``lualock/_sync``) from the asyncio API (``lualock/aio``).

``python tools/unasync.py`` writes the files; with ``--check`` it only fails if one is not current.
The rules below replace text. What only asyncio has is left out:

* lines from ``# async only:`` to ``# end``;
* in a docstring, a line that begins with "In asyncio," and the rest of its paragraph;
* the parameter ``cancel_on_lost``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, TARGET = ROOT / "lualock/aio", ROOT / "lualock/_sync"
HEADER = "# Generated from {} by `python tools/unasync.py`: edit that file.\n"

RULES = [
    # What only asyncio has.
    (r"^ *# async only:\n(?:.*\n)*?^ *# end\n", ""),
    (r"^( +)In asyncio, .*\n(?:\1[^\s:\"].*\n)*", ""),
    (r"^( +):param cancel_on_lost:.*\n(?:\1 +.*\n)*", ""),
    (r"^ +cancel_on_lost(: bool = False|=cancel_on_lost),\n", ""),
    (r", cancel_on_lost\b", ""),
    # Keywords, and the methods and types that go with them.
    (r"\basync (def|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\bend_async\b", "end"),
    (r"\bCoroutine\[Any, Any, R\]", "R"),
    # Modules and names.
    (r"\blualock\.aio\b", "lualock._sync"),
    (r"\b_transport\.asyncio\b", "_transport.threads"),
    (r"\bredis\.asyncio\b", "redis"),
    (r"\bvalkey\.asyncio\b", "valkey"),
    (r"\basynchronous=True\b", "asynchronous=False"),
    (r"\bAsyncDriver\b", "BlockingDriver"),
    (r"\bLoopRenewers?\b", "ThreadRenewer"),  # one serves all threads
    (r"\b_renewers(\.current\(\))?", "_renewer"),
    (r"\bcurrent_task\(\)", "None"),
    # Words.
    (r"\basyncio API\b", "threads API"),
    (r"\b(this|between) task(s?)\b", r"\1 thread\2"),
    (r"\bin the event loop, and may be a coroutine function\b", "in a thread of its own"),
    (r"\bcoroutine function\b", "plain function"),
]

# Imports and variables that the rules leave unused; then the order of imports, and the layout.
TIDY = (
    ["check", "--select", "F401,I001,RET504", "--fix", "--unsafe-fixes", "--quiet"],
    ["format"],
)


def generate(source: Path, used: set[str]) -> str:
    """Return the threads API's file; add the rules that changed something to ``used``."""
    text = source.read_text()
    for pattern, replacement in RULES:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if count:
            used.add(pattern)
    text = HEADER.format(source.relative_to(ROOT)) + text
    for command in TIDY:
        ruff = [sys.executable, "-m", "ruff", *command, "-"]
        ruff.append(f"--stdin-filename={TARGET / source.name}")
        text = subprocess.check_output(ruff, input=text, cwd=ROOT, text=True)
    if left := re.search(r"\b(async|await|asyncio)\b.*", text):
        sys.exit(f"{source.relative_to(ROOT)}: no rule makes this fit for threads: {left[0]}")
    return text


def main(*, check: bool) -> None:
    """Write the files of the threads API, or only check them.

    :raises SystemExit: always; with a code other than 0 if a file is not current.
    """
    used: set[str] = set()
    found = {TARGET / path.name: generate(path, used) for path in sorted(SOURCE.glob("*.py"))}
    if unused := [pattern for pattern, _ in RULES if pattern not in used]:
        sys.exit(f"delete the rules that match nothing: {unused}")
    current = {path: path.read_text() for path in TARGET.glob("*.py")}
    stale = [path for path in {*found, *current} if found.get(path) != current.get(path)]
    for path in sorted(stale):
        if check:
            print(f"{path.relative_to(ROOT)} is not current: run python tools/unasync.py")
        elif path in found:
            path.write_text(found[path])
        else:
            path.unlink()
    sys.exit(check and bool(stale))


if __name__ == "__main__":
    main(check=sys.argv[1:] == ["--check"])
