"""Each verb's every reply, as its header documents them, straight from each server."""

from __future__ import annotations

from typing import Any

import pytest

from lualock.script import SCRIPTS
from tests.servers import Server

KEY, MINE, OTHERS = b"lualock:{x}", b"m" * 22, b"o" * 22
TOMBSTONE_MS = 5000


class Raw:
    """The scripts of one server, without anything of ours in between."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __call__(self, verb: str, *args: object) -> Any:
        return self.client.eval(SCRIPTS[verb].source.decode(), 1, KEY, *args)


@pytest.fixture
def raw(server: Server) -> Any:
    """The scripts on an empty server."""
    with server.client() as client:
        yield Raw(client)


def test_acquire(raw: Raw) -> None:
    """Acquired, owned, held: and only the first writes."""
    fence = raw("acquire", MINE, 30_000, b"me")
    assert fence.isdigit()
    assert len(fence) == 16
    raw.client.pexpire(KEY, 10_000)
    owned = raw("acquire", MINE, 30_000, b"me")
    assert owned[0] == b"owned"
    assert 0 < owned[1] <= 10_000
    assert owned[2] == fence
    held = raw("acquire", OTHERS, 30_000, b"other")
    assert held[0] == b"held"
    assert 0 < held[1] <= 10_000
    assert 0 <= held[2] < 10_000
    assert held[3] == b"me"
    assert 0 < raw.client.pttl(KEY) <= 10_000


def test_release(raw: Raw) -> None:
    """Released, already, missing, held: and only the first writes."""
    assert raw("release", MINE) == b"missing"
    fence = raw("acquire", MINE, 30_000, b"me")
    assert raw("release", OTHERS) == [b"held", b"me"]
    assert raw("release", MINE) == b"released"
    assert raw.client.get(KEY) == b"R" + fence + MINE
    raw.client.pexpire(KEY, 100)
    assert raw("release", MINE) == b"already"
    assert raw("release", OTHERS) == b"missing"
    assert raw.client.pttl(KEY) <= 100  # a repeat does not keep the tombstone alive


def test_extend(raw: Raw) -> None:
    """Extended, already, missing, held: and only the first writes."""
    assert raw("extend", MINE, 9000) == b"missing"
    raw("acquire", MINE, 30_000, b"me")
    assert raw("extend", OTHERS, 90_000) == [b"held", b"me"]
    assert raw.client.pttl(KEY) <= 30_000
    assert raw("extend", MINE, 90_000) == b"extended"
    assert 30_000 < raw.client.pttl(KEY) <= 90_000
    raw("release", MINE)
    assert raw("extend", MINE, 90_000) == b"already"
    assert raw("extend", OTHERS, 90_000) == b"missing"
    assert raw.client.pttl(KEY) <= TOMBSTONE_MS


def test_inspect(raw: Raw) -> None:
    """Free, held: and nothing is written, nor the token told."""
    assert raw("inspect") == b"free"
    fence = raw("acquire", MINE, 30_000, b"me")
    held = raw("inspect")
    assert held[0] == b"held"
    assert 0 < held[1] <= 30_000
    assert 0 <= held[2] < 10_000
    assert held[3:] == [fence, b"me"]
    raw.client.persist(KEY)
    assert raw("inspect")[1] == -1
    raw("release", MINE)
    assert raw("inspect") == b"free"


@pytest.mark.parametrize("value", [b"H1", b"X" + b"1" * 80, b"H" + b"x" * 80])
def test_conflict(raw: Raw, value: bytes) -> None:
    """What is no record is a conflict for every verb, and stays."""
    raw.client.set(KEY, value)
    for verb, *args in (
        ("acquire", MINE, 30_000, b"me"),
        ("release", MINE),
        ("extend", MINE, 30_000),
        ("inspect",),
    ):
        assert raw(str(verb), *args) == [b"conflict"]
    assert raw.client.get(KEY) == value
    assert raw.client.pttl(KEY) == -1
