"""The examples of the README and of the site run unchanged, and links lead somewhere."""

from __future__ import annotations

import pydoc
import re
import textwrap
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis

import lualock
from lualock import errors
from tests.integrations.test_jobs_pages import PAGES as JOB_PAGES
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SITE = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
PAGES = [*sorted(ROOT.glob("*.md")), *SITE]
PYTHON = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^( *)(```+|:::+).*?^\1\2", re.DOTALL | re.MULTILINE)
PATH = re.compile(r"`((?!bench/results)(?:bench|demo|docs|lualock|model|tests)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


MEMBERS = re.compile(r"autoclass:: (lualock[\w.]*\.(\w+))(?:\(\))?\n +:members: (.+)")
FOR_ROOMS = {
    "Locks": {
        *("asynchronous", "counterpart", "for_endpoint", "lock_at", "prefix", "server", "together"),
    },
    "Lock": {
        *("abandon_in_background", "begin_block", "derived", "hold", "holder_in", "locks", "parts"),
        *("refuse_own_wait", "renewed", "request", "run", "server_clock", "with_metadata"),
    },
    "Lease": {
        *("abandon_in_background", "keep_for", "release_early", "stop_renewal", "stop_watching"),
    },
}
"""The public names of a class that are for other rooms of the library, not for its users."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def runs_here(page: Path) -> bool:
    """Whether the page has examples that need no worker: test_jobs_pages.py has the others."""
    return page not in JOB_PAGES and PYTHON.search(page.read_text("utf-8")) is not None


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    found: set[str] = set()
    prose = FENCED.sub("", page.read_text("utf-8"))
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", ["threads", "asyncio"])
def test_the_reference_names_every_member(page: str) -> None:
    """A class on a page of the reference has there each public name that its users need."""
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text("utf-8")
    found = MEMBERS.findall(text)
    assert len(found) >= 3
    for path, name, members in found:
        public = {one for one in dir(pydoc.locate(path)) if not one.startswith("_")}
        assert set(members.split(", ")) == public - FOR_ROOMS.get(name, set()), path


@pytest.mark.parametrize("page", [page for page in PAGES if runs_here(page)], ids=name_of)
def test_examples(page: Path, one_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of a page run in order, as one program."""
    monkeypatch.setenv("LUALOCK_URL", one_server.url)
    namespace: dict[str, object] = {"__name__": page.stem}
    try:
        for number, (_, block) in enumerate(PYTHON.findall(page.read_text("utf-8")), start=1):
            source = f"{name_of(page)}, Python block {number}"
            exec(compile(textwrap.dedent(block), source, "exec"), namespace)
    finally:  # examples do not tidy up
        for value in namespace.values():
            if isinstance(value, lualock.Locks | redis.Redis):
                value.close()
        with redis.Redis.from_url(one_server.url, decode_responses=True) as client:
            for user in set(client.acl_users()) - {"default"}:
                client.acl_deluser(user)


def test_the_readme_is_short_and_has_examples() -> None:
    """The README is read in five minutes, and its examples are found."""
    assert len(README.read_text("utf-8").splitlines()) <= 150
    assert runs_here(README)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    """Each relative link leads to a file, and to a heading of it if it names one."""
    for link in LINK.findall(FENCED.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("start", [README, ROOT / "docs" / "index.md"], ids=name_of)
def test_every_page_is_found_by_links(start: Path) -> None:
    """Links in the text lead from the README, and from the site's first page, to every page."""
    # A toctree is no such link: where the site is not built, it is a block of code.
    found, left = {start}, [start]
    while left:
        page = left.pop()
        for link in LINK.findall(FENCED.sub("", page.read_text("utf-8"))):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target in SITE and target not in found:
                found.add(target)
                left.append(target)
    assert not {*SITE} - found - {ROOT / "docs" / "index.md"}


def test_what_the_readme_links_to_is_in_the_source_distribution() -> None:
    """No link of the README leads out of an unpacked source distribution."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    included = re.findall(r"\[tool.hatch.build.targets.sdist\]\ninclude = \[(.*)\]", project)[0]
    links = {link for link in LINK.findall(README.read_text("utf-8")) if "://" not in link}
    assert links
    for link in links:
        assert f'"{link.partition("/")[0]}"' in included, link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths(page: Path) -> None:
    """Each file and folder of the repository that a page names exists."""
    for path in PATH.findall(page.read_text("utf-8")):
        assert (ROOT / path).exists(), path


def test_the_table_of_errors_has_every_class() -> None:
    """The page of errors says of each class when it is raised, and what to do."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised - {"LockError"} == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_script_has_its_header_on_the_site() -> None:
    """The page of scripts names each folder of scripts; those of ``include`` are parts of them."""
    page = (ROOT / "docs" / "reference" / "scripts.md").read_text("utf-8")
    folders = {file.parent for file in (ROOT / "lualock").rglob("*.lua")}
    named = {
        ROOT / "lualock" / name for name in re.findall(r"^```{scripts} (.+)$", page, re.MULTILINE)
    }
    assert named == {folder for folder in folders if folder.name != "include"}


def test_the_commands_it_names_exist() -> None:
    """Each ``make`` target in the README is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"make (\w+)", README.read_text("utf-8"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_it_quotes() -> None:
    """The lines of Celery's example are those of the page whose example is tested."""
    (quoted,) = re.findall(
        r"^```text\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    page = (ROOT / "docs" / "jobs" / "celery.md").read_text("utf-8")
    for line in quoted.splitlines():
        assert f"\n{line.removesuffix(' ...')}" in page, line
