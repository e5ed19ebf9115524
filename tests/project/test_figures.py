"""The figures of the benchmark in the README and on the site: all are of the kept run."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import docs, plots, report, rivals
from bench.__main__ import main
from tests.project.test_docs import FENCED, name_of

COMMAND = "python -m bench docs docs/bench/report.json"
NUMBER = re.compile(r"(?<![\w.-])\d\S*")
NO_PROSE = re.compile(r"`[^`]*`|\]\([^)]*\)")  # code and links


@pytest.fixture
def kept() -> dict[str, Any]:
    return report.load(str(docs.KEPT))


@pytest.mark.parametrize("page", docs.PAGES, ids=name_of)
def test_the_figures_are_of_the_kept_run(page: Path, kept: dict[str, Any]) -> None:
    """Each page has blocks, and is what the command writes from the kept run."""
    text = page.read_text("utf-8")
    assert docs.BLOCK.search(text)
    assert docs.rewrite(text, kept) == text, COMMAND


@pytest.mark.parametrize("scenario", docs.PLOTS)
def test_the_plots_are_of_the_kept_run(scenario: str, kept: dict[str, Any]) -> None:
    """Each plot names the digest of the rows that it shows."""
    plot = (docs.KEPT.parent / f"{scenario}.svg").read_text("utf-8")
    assert plots.source(kept, scenario) in plot, COMMAND


def figures(page: str) -> Iterator[str]:
    """Yield the numbers in the prose of each section that has a block."""
    for section in re.split(r"^#+ .*$", FENCED.sub("", page), flags=re.MULTILINE):
        if docs.BLOCK.search(section):
            yield from NUMBER.findall(NO_PROSE.sub("", docs.BLOCK.sub("", section)))


@pytest.mark.parametrize("page", docs.PAGES, ids=name_of)
def test_no_figure_stands_outside_of_the_blocks(page: Path) -> None:
    """The prose beside a block has no number: the next run would make it wrong."""
    assert not list(figures(page.read_text("utf-8")))


@pytest.mark.parametrize("sentence", ["has a 57th of its rate", "takes 169 µs", "in 1,816 of 2"])
def test_a_figure_in_the_prose_is_found(sentence: str) -> None:
    """A figure is found beside a block; a number in code, in a link or elsewhere is not."""
    block = "<!-- bench: run -->\n7 s\n<!-- end -->\n"
    assert list(figures(f"# A\n{block}\nIt {sentence}.\n"))
    assert not list(figures(f"# A\n{block}\n`{sentence}` [p99](a-1.md#2)\n# B\nIt {sentence}.\n"))


def test_the_kept_run_names_its_commit_and_no_place(kept: dict[str, Any]) -> None:
    """The kept run is of a clean commit, and has no path of the machine."""
    assert re.fullmatch(r"[0-9a-f]{7,40}", kept["facts"]["commit"])
    assert not re.search(r"(?<!\w)/\w+/", report.as_text(kept))


def test_what_a_run_lacks_is_named(kept: dict[str, Any]) -> None:
    """A scenario or a rival that was not measured is named in the place of its figures; an
    unknown block is refused."""
    less = copy.deepcopy(kept)
    del less["results"]["waiters"]
    rows = less["results"]["contention"]
    rows[:] = [row for row in rows if row["rival"] != rivals.PYTHON_REDIS_LOCK]
    names = ("waiters", "few_of_contention")
    text = docs.rewrite("".join(f"<!-- bench: {n} -->\n<!-- end -->\n" for n in names), less)
    assert "This run has not measured `waiters`." in text
    assert f"not measured: {rivals.PYTHON_REDIS_LOCK}:" in text
    assert f"| {rivals.PYTHON_REDIS_LOCK}" not in text
    rows.remove(next(row for row in rows if row["rival"] != rivals.LUALOCK))
    assert "| not measured |" in docs.rewrite("<!-- bench: contention -->\n<!-- end -->", less)
    with pytest.raises(report.Unusable, match="no_such"):
        docs.rewrite("<!-- bench: no_such -->\n<!-- end -->", kept)


def test_the_command(tmp_path: Path, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command keeps the run, draws the plots and rewrites the pages; it refuses a run without
    a plot before it writes anything."""
    page = tmp_path / "page.md"
    empty = "<!-- bench: targets -->\n<!-- end -->\n"
    page.write_text(empty)
    monkeypatch.setattr(docs, "PAGES", (page,))
    monkeypatch.setattr(docs, "KEPT", tmp_path / "kept" / "report.json")
    run = tmp_path / "run.json"
    without = kept | {"results": {"contention": kept["results"]["contention"]}}
    run.write_text(report.as_text(without))
    assert main(["docs", str(run)]) == 2
    assert page.read_text() == empty
    assert not docs.KEPT.parent.exists()

    one = {"claim": "a claim", "figure": None, "met": False}
    run.write_text(report.as_text(kept | {"targets": [one]}))
    assert main(["docs", str(run)]) == 0
    assert "| a claim | - | **missed** |" in page.read_text()
    assert report.load(str(docs.KEPT))["targets"] == [one]
    assert {path.stem for path in docs.KEPT.parent.glob("*.svg")} == set(docs.PLOTS)
