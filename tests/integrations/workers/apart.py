"""A folder of its own for the systems that hold redis-py back: arq wants it below 6, SAQ below 8.

They are installed there as a user would install them, ``pip install 'lualock[arq,saq]'``, so
lualock runs with the redis-py that they bring.

    python -m tests.integrations.workers.apart      # `make test` does it
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = Path(sys.prefix) / "apart"
PYTHON = FOLDER / "bin" / "python"
READY = FOLDER / "ready"
SYSTEMS = ("arq", "saq")


def python() -> Path:
    """Return the interpreter that has them; make it if it does not exist."""
    wanted = (ROOT / "pyproject.toml").read_text("utf-8")
    if not READY.exists() or READY.read_text("utf-8") != wanted:
        venv.create(FOLDER, with_pip=True, clear=True)
        install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-e", f"{ROOT}[{','.join(SYSTEMS)}]"], check=True)
        READY.write_text(wanted, "utf-8")
    return PYTHON


if __name__ == "__main__":
    python()
