"""The Lua files: header, body and Python declaration agree, and a broken file does not load."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import lualock
from lualock import _protocol as protocol
from lualock.jobs import verbs
from lualock.scripts import SCRIPTS, ScriptError, load, parse
from tests.support.servers import Server

FOLDER = Path(lualock.__file__).with_name("scripts")
INCLUDE = {path.stem: path.read_text() for path in (FOLDER / "include").glob("*.lua")}
# A folder of scripts, the loaded scripts, and the module of their generators.
FAMILIES = {
    "locks": (FOLDER / "lock", SCRIPTS, protocol),
    "jobs": (FOLDER.parent / "jobs" / "scripts", verbs.SCRIPTS, verbs),
}
EVERY = [script for _, scripts, _ in FAMILIES.values() for script in scripts.values()]
GOOD = (
    "-- verb: does it\n-- KEYS[1] lock  the key\n-- ARGV[1] token  of the lease\n"
    "-- Returns 'done'  always\n"
    "\nlocal lock = KEYS[1]\nlocal token = ARGV[1]\nlocal proof = token\n"
)
REPLY = "local function reply(proof, word)\n  return proof .. 'done'\nend\n"  # it makes a reply
OTHER = "local function say(proved, word)\n  return 'done'\nend\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_verb_has_one_word_everywhere(family: str) -> None:
    """The Lua file, its generator and its constant have the same name."""
    folder, scripts, module = FAMILIES[family]
    assert set(scripts) == {path.stem for path in folder.glob("*.lua")}
    for verb, script in scripts.items():
        assert callable(getattr(module, verb))
        assert getattr(module, verb.upper()) is script


def test_the_digest_is_the_server_s(server: Server) -> None:
    """SCRIPT LOAD answers the digest that was computed at import, on every server."""
    with server.client() as client:
        for script in EVERY:
            assert client.script_load(script.source.decode()) == script.sha
            assert hashlib.sha1(script.source).hexdigest() == script.sha


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_the_documented_ones(family: str) -> None:
    """The words that a body returns are exactly those in its header."""
    folder, scripts, _ = FAMILIES[family]
    for verb in scripts:
        text = (folder / f"{verb}.lua").read_text()
        for part in re.findall(r"--@include (\w+)", text):
            text += INCLUDE[part]
        documented = set(re.findall(r"^-- Returns \{?'(\w+)'", text, re.MULTILINE))
        returned = set(
            re.findall(r"^\s*return (?:proof \.\. |\{proof, )'(\w+)'", text, re.MULTILINE)
        )
        assert documented == returned, verb


def test_no_script_reads_the_client_s_time_or_randomness() -> None:
    """Scripts read no time but the server's, and are deterministic otherwise."""
    for script in EVERY:
        assert not re.search(rb"math\.random|os\.(time|clock|date)", script.source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("-- verb:", "-- other:"), "the first line must be"),
        ("local x = 1\n", "the first line must be"),
        (GOOD.replace("-- Returns", "-- Answers"), "no '-- Returns' line"),
        (GOOD.replace("local lock", "local key"), "the body binds"),
        (GOOD.replace("KEYS[1] lock", "KEYS[2] lock"), "out of order"),
        (GOOD + "local ttl_ms = ARGV[2]\n", "the body binds"),
        (GOOD + "redis.call('DEL', KEYS[1])\n", "nothing else"),
        (GOOD + "--@include nowhere\n", "no scripts/include/nowhere.lua"),
        (GOOD.replace("local proof", "local other"), "no proof for its replies"),
        (GOOD + "return 'done'\n", "does not begin with the proof: return 'done'"),
        (GOOD + "return {'done'}\n", "does not begin with the proof: return {'done'}"),
        (
            GOOD + REPLY.replace("proof ..", "word .."),
            "begin with the proof: return word .. 'done'",
        ),
        (GOOD + OTHER + "return say(proof, 1)\n", "begin with the proof: return say(proof, 1)"),
        (GOOD + REPLY + "return reply(token, 1)\n", "begin with the proof: return reply(token, 1)"),
        (GOOD.replace("proof = token", "proof = lock"), "must be an argument"),
        (
            GOOD.replace("token", "proof", 2)
            .replace("-- Returns", "-- ARGV[2] token  of the lease\n-- Returns")
            .replace("local proof = token", "local token = ARGV[2]"),
            "must be the last argument",
        ),
        (GOOD.replace("token", "proof", 2) + "local x = ARGV[2]\n", "the body binds"),
    ],
)
def test_a_file_against_the_rules_does_not_load(text: str, message: str) -> None:
    """A file that breaks a rule of the loader is refused, with the reason."""
    assert parse("verb", GOOD, {}).keys == ("lock",)
    assert parse("verb", GOOD + REPLY + OTHER + "return reply(proof, say(1))\n", {}).proof_at == 1
    with pytest.raises(ScriptError, match=re.escape(message)):
        parse("verb", text, {})


def test_includes_are_pasted() -> None:
    """An include becomes part of the source, and of the digest."""
    text = GOOD + "--@include part\n"
    one = parse("verb", text, {"part": "local a = 1"})
    two = parse("verb", text, {"part": "local a = 2"})
    assert b"local a = 1" in one.source
    assert b"--@include" not in one.source
    assert one.sha != two.sha


def test_loading_a_folder(tmp_path: Path) -> None:
    """The verbs of a folder are its .lua files; includes are not verbs."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "part.lua").write_text("local a = 1\n")
    (tmp_path / "verb.lua").write_text(GOOD + "--@include part\n")
    assert list(load(tmp_path)) == ["verb"]
