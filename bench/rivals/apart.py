"""Rivals that cannot be requirements of the `bench` extra: each has its own folder.

One has the import name of another; the others cap redis-py, and would keep it at an old version.
pip checks whether each works with the installed redis-py; its answers are kept for the report.

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
    """Install what pip allows, and keep its answers."""
    pinned = f"redis=={metadata.version('redis')}"
    answers = {}
    for name in WHY_APART:
        # With its requirements to check; without to install, since redis-py is installed.
        error = _pip("--dry-run", pinned, name)
        if error == "":
            error = _pip("--no-deps", "--upgrade", "--target", str(FOLDER / name), name)
        answers[name] = error
        print(f"{name}: {'installed' if error == '' else error}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    ANSWERS.write_text(json.dumps(answers, indent=1), "utf-8")


def _pip(*arguments: str) -> str:
    """Return the error of pip, or an empty text."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[0].removeprefix("ERROR: ") if errors else f"pip ended with {done.returncode}"


def refused() -> dict[str, str]:
    """Return the rivals that could not be installed, and the errors of pip."""
    if not ANSWERS.exists():
        return dict.fromkeys(WHY_APART, "not installed: run python -m bench.rivals.apart")
    answers: dict[str, str] = json.loads(ANSWERS.read_text("utf-8"))
    return {name: answer for name, answer in answers.items() if answer}


def load(distribution: str, module: str) -> ModuleType:
    """Import a module of a separately installed rival, and free its import name again."""
    folder = str(FOLDER / distribution)
    name = module.partition(".")[0]

    def taken() -> dict[str, ModuleType]:
        found = [key for key in sys.modules if key == name or key.startswith(f"{name}.")]
        return {key: sys.modules.pop(key) for key in found}

    previous = taken()
    sys.path.insert(0, folder)
    try:
        return import_module(module)
    finally:
        sys.path.remove(folder)
        taken()
        sys.modules.update(previous)


def version_of(distribution: str) -> str:
    """Return the version, wherever it is installed."""
    for found in metadata.distributions(path=[str(FOLDER / distribution), *sys.path]):
        if found.metadata["Name"].lower().replace("_", "-") == distribution:
            return found.version
    raise metadata.PackageNotFoundError(distribution)


if __name__ == "__main__":
    install()
