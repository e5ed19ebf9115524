"""Rivals that cannot be requirements of the `bench` extra: each gets a folder of its own.

One has the same import name as another; the others cap redis-py, and would hold everything else
back at an old one. pip is asked whether each goes together with the redis-py that is installed;
what it answers is kept, and the report says it.

    python -m bench.rivals.apart      # `make bench` does it
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

FOLDER = Path(sys.prefix) / "rivals"
ANSWERS = FOLDER / "answers.json"
WHY_APART = {
    "redis-lock-py": "its import name, redis_lock, is also python-redis-lock's",
    "redis-fifo-lock": "it caps redis-py",
    "redis-distlock": "it caps redis-py",
    "redlock-ng": "it caps redis-py",
}


def install() -> None:
    """Install what pip lets us, and keep its answers."""
    pinned = f"redis=={metadata.version('redis')}"
    answers = {}
    for name in WHY_APART:
        # With its requirements, to ask; without, to install: redis-py is there already.
        asked = _pip("--dry-run", pinned, name)
        if asked == "":
            asked = _pip("--no-deps", "--upgrade", "--target", str(FOLDER / name), name)
        answers[name] = asked
        print(f"{name}: {'installed' if asked == '' else asked}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    ANSWERS.write_text(json.dumps(answers, indent=1), "utf-8")


def _pip(*arguments: str) -> str:
    """What pip complained about; nothing if it did what it was told."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return said[0].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}"


def refused() -> dict[str, str]:
    """Who could not be installed, and what pip said."""
    if not ANSWERS.exists():
        return dict.fromkeys(WHY_APART, "not installed: run python -m bench.rivals.apart")
    answers: dict[str, str] = json.loads(ANSWERS.read_text("utf-8"))
    return {name: answer for name, answer in answers.items() if answer}


def load(distribution: str, module: str) -> ModuleType:
    """A module of a rival that is installed apart, without leaving its name to others."""
    folder = str(FOLDER / distribution)
    name = module.partition(".")[0]

    def taken() -> dict[str, ModuleType]:
        found = [key for key in sys.modules if key == name or key.startswith(f"{name}.")]
        return {key: sys.modules.pop(key) for key in found}

    others = taken()
    sys.path.insert(0, folder)
    try:
        return import_module(module)
    finally:
        sys.path.remove(folder)
        taken()
        sys.modules.update(others)


def version_of(distribution: str) -> str:
    """Its version, wherever it is installed."""
    for found in metadata.distributions(path=[str(FOLDER / distribution), *sys.path]):
        if found.metadata["Name"].lower().replace("_", "-") == distribution:
            return found.version
    raise metadata.PackageNotFoundError(distribution)


if __name__ == "__main__":
    install()
