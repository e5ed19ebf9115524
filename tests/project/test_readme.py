"""The README's examples run unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.servers import Server

README = Path(__file__).parents[2] / "README.md"


def test_examples(one_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks run in order, as one program."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 5
    monkeypatch.setenv("LUALOCK_URL", one_server.url)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)
    namespace["store"].execute_command("ACL", "DELUSER", "locker")  # type: ignore[attr-defined]
    namespace["locks"].close()  # type: ignore[attr-defined]  # the example leaves it open


def test_the_commands_it_names_exist() -> None:
    """Each ``make`` target in the README is in the Makefile."""
    makefile = (README.parent / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"make (\w+)", README.read_text("utf-8"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_it_quotes() -> None:
    """The lines of Celery's example are those of the page whose example is tested."""
    (quoted,) = re.findall(
        r"^```text\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    page = (README.parent / "docs" / "jobs.md").read_text("utf-8")
    for line in quoted.splitlines():
        assert f"\n{line.removesuffix(' ...')}" in page, line
