"""Load, check and hash the Lua scripts, once at import.

A script is one file, one verb. Its header is the contract, in comment lines at the top::

    -- acquire: purpose
    -- KEYS[1] name  meaning
    -- ARGV[1] name  meaning
    -- Returns what  meaning            (one line a reply)

and its body binds each declared KEYS and ARGV to the local of that name. A script of any number of
keys declares them as ``KEYS[...] name``, and binds the table. ``--@include part``
pastes ``scripts/include/part.lua`` (which may include others); as a comment it leaves the file
valid Lua. An include is text, not a function, where a function would cost more than 1 % of a
script; its header names the locals that it needs and binds. Comment lines are not sent: the source
is two thirds shorter without them.

Each reply begins with a proof of the request that it answers: a string has it in front, a list has
it as its first item, and ``Returns`` describes the rest. The proof is an argument that no other
request has: the token or the lease where each is sent once (``local proof = token``), else an
argument of its own that is named ``proof``, which the transport adds each time it sends the
request. So a stream of replies that has lost its order is noticed, and no reply of it is believed.
A function that makes a reply has ``proof`` as its first parameter, and is held to the same rule.

The transport also writes an argument that is named ``deadline`` or ``sent_us``, when it sends the
request.

A file that breaks these rules fails the import, so that it cannot be shipped.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import textwrap
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable

_DECLARED = re.compile(r"^-- (KEYS|ARGV)\[(\d+|\.\.\.)\] +(\w+) +\S")
_BOUND = re.compile(r"^local (\w+) = (KEYS|ARGV)(?:\[(\d+)\])?$", re.MULTILINE)
_USED = re.compile(r"\b(KEYS|ARGV)\b")
_COMMENT = re.compile(r"^ *(--.*)?\n", re.MULTILINE)
_INCLUDE = re.compile(r"^( *)--@include (\w+)$", re.MULTILINE)
_PROOF = re.compile(r"^local proof = (\w+)(\[\d+\])?$", re.MULTILINE)
# A function whose first parameter is the proof makes a reply; any other may return anything.
_FUNCTION = re.compile(r"^local function (?!\w+\(proof\b).*?^end$", re.MULTILINE | re.DOTALL)
_REPLY_FUNCTION = re.compile(r"^local function (\w+)\(proof\b", re.MULTILINE)
_UNPROVED = re.compile(r"\breturn (?!proof \.\. |proof$|\{proof, ).*", re.MULTILINE)


class ScriptError(ImportError):
    """A Lua file breaks a rule of this module; the message names both."""


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """One verb: its source, its digest and the commands that run it.

    ``evalsha`` and ``eval`` are the first bytes of these commands; the keys and arguments follow.
    """

    name: str
    path: str
    """Its family and name, as ``lock/wait``: no two scripts have the same."""
    keys: tuple[str, ...]
    args: tuple[str, ...]
    source: bytes
    sha: str
    evalsha: bytes
    eval: bytes  # the same with the source, for a server that has forgotten the script
    proof_at: int | None
    """Which key or argument is the proof; ``None``: an argument that the transport appends."""
    deadline_at: int | None
    """Which argument is the server's time at which the caller stops waiting, if there is one. It
    counts from the end, because of :func:`with_keys`: -1 is the last one without the proof."""
    sent_us_at: int | None
    """The same for the server's time when the request is sent."""


def parse(
    name: str, text: str, include: dict[str, str], *, family: str = "", proved: bool = True
) -> Script:
    """Check a file's header against its body, expand its includes and hash it.

    :param family: the name of its folder.
    :param proved: whether its replies must begin with the proof.
    """
    header, body = _split_header(name, text)
    keys, args = _check_bindings(name, header, body)
    expanded = _paste_includes(name, body, include)
    if len(_USED.findall(expanded)) != len(keys) + len(args):
        raise ScriptError(f"{name}.lua: KEYS and ARGV are for binding to locals, nothing else")
    proof_at = None
    if proved:
        proof_at = _find_proof(name, body, keys, args)
        _check_replies(name, expanded)
    source = _COMMENT.sub("", expanded).strip().encode() + b"\n"
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
    parts = len(keys), len(args)
    return Script(
        name,
        f"{family}/{name}",
        keys,
        args,
        source,
        sha,
        evalsha=_first_bytes(b"EVALSHA", sha.encode(), *parts),
        eval=_first_bytes(b"EVAL", source, *parts),
        proof_at=proof_at,
        deadline_at=_from_end("deadline", args),
        sent_us_at=_from_end("sent_us", args),
    )


def _split_header(name: str, text: str) -> tuple[list[str], str]:
    lines = text.splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("--"), lines))
    if not header or not header[0].startswith(f"-- {name}: "):
        raise ScriptError(f"{name}.lua: the first line must be '-- {name}: <purpose>'")
    if not any(line.startswith("-- Returns ") for line in header):
        raise ScriptError(f"{name}.lua: the header has no '-- Returns' line")
    return header, "\n".join(lines[len(header) :])


def _check_bindings(
    name: str, header: list[str], body: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the keys and of the arguments. The body must bind what is declared."""
    declared: dict[str, list[str]] = {"KEYS": [], "ARGV": []}
    many = False
    for kind, index, label in (match.groups() for match in map(_DECLARED.match, header) if match):
        many = many or index == "..."
        declared[kind].append(label)
        if index != str(len(declared[kind])) and (kind, index) != ("KEYS", "..."):
            raise ScriptError(f"{name}.lua: {kind}[{index}] is declared out of order")
    bound = {(kind, index): label for label, kind, index in _BOUND.findall(body)}
    wanted = {
        (kind, "" if many and kind == "KEYS" else str(index)): label
        for kind, labels in declared.items()
        for index, label in enumerate(labels, start=1)
    }
    if bound != wanted:
        raise ScriptError(f"{name}.lua: the header declares {wanted}, the body binds {bound}")
    return tuple(declared["KEYS"]), tuple(declared["ARGV"])


def _paste_includes(
    name: str, text: str, include: dict[str, str], above: tuple[str, ...] = ()
) -> str:
    """Return the text with its includes in it.

    :param above: the includes that this text is part of.
    """

    def paste(match: re.Match[str]) -> str:
        indent, part = match.groups()
        if part not in include:
            raise ScriptError(f"{name}.lua: there is no scripts/include/{part}.lua")
        if part in above:
            raise ScriptError(f"{name}.lua: scripts/include/{part}.lua includes itself")
        pasted = _paste_includes(name, include[part].strip(), include, (*above, part))
        return textwrap.indent(pasted, indent)

    return _INCLUDE.sub(paste, text)


def _find_proof(name: str, body: str, keys: tuple[str, ...], args: tuple[str, ...]) -> int | None:
    """Return which key or argument is the proof; ``None``: an argument that the transport
    appends."""
    proofs = [argument or label for label, argument in _PROOF.findall(body)]
    if len(proofs) != 1:
        raise ScriptError(f"{name}.lua: there is no proof for its replies: 'local proof = ...'")
    if "proof" in args:
        if args[-1] != "proof":
            raise ScriptError(f"{name}.lua: the proof must be the last argument")
        return None
    if proofs[0] not in args:
        raise ScriptError(f"{name}.lua: the proof must be an argument, and {proofs[0]} is not one")
    return len(keys) + args.index(proofs[0])


def _from_end(argument: str, args: tuple[str, ...]) -> int | None:
    if argument not in args:
        return None
    return args.index(argument) - len(args) + ("proof" in args)


def _check_replies(name: str, expanded: str) -> None:
    """Check that each reply begins with the proof."""
    replies = _FUNCTION.sub("", _COMMENT.sub("", expanded))
    for function in _REPLY_FUNCTION.findall(replies):
        replies = replies.replace(f"return {function}(proof, ", "return {proof, ")
    if bare := _UNPROVED.search(replies):
        raise ScriptError(f"{name}.lua: a reply does not begin with the proof: {bare.group()}")


def _first_bytes(command: bytes, script: bytes, keys: int, args: int) -> bytes:
    """Return the first bytes of a command that runs the script with so many keys and arguments,
    which follow."""
    words = command, script, b"%d" % keys
    written = (b"\r\n$%d\r\n%b" % (len(word), word) for word in words)
    return b"*%d%b" % (len(words) + keys + args, b"".join(written))


@cache
def with_keys(script: Script, count: int) -> Script:
    """Return a script that takes any number of keys, for this number of them."""
    parts = count, len(script.args)
    return replace(
        script,
        keys=script.keys * count,
        evalsha=_first_bytes(b"EVALSHA", script.sha.encode(), *parts),
        eval=_first_bytes(b"EVAL", script.source, *parts),
    )


def _read(folder: Traversable) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.name.endswith(".lua")]
    return {
        file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
        for file in sorted(files, key=lambda file: file.name)
    }


def load(
    folder: Traversable, include_from: Traversable | None = None, *, proved: bool = True
) -> dict[str, Script]:
    """Load each script of a folder, by verb. It may be in a zip file.

    :param include_from: the folder that has their ``include/``, if it is another one.
    :raises ScriptError: the folder has no script.
    """
    include, texts = _read((include_from or folder) / "include"), _read(folder)
    if not texts:
        raise ScriptError(
            f"could not load the Lua scripts of lualock: there is none in {folder}. Add the data "
            "files of the package to the program (PyInstaller: --collect-data lualock)"
        )
    return {
        name: parse(name, text, include, family=folder.name, proved=proved)
        for name, text in texts.items()
    }


@cache
def family(name: str) -> dict[str, Script]:
    """Load a *family*, the scripts of one folder here, by verb."""
    root = resources.files(__name__)
    return load(root / name, include_from=root)


def every() -> dict[str, Script]:
    """Load all families; return their scripts by family and verb, as ``lock/wait``."""
    folders = [one.name for one in resources.files(__name__).iterdir() if one.is_dir()]
    families = [
        family(name) for name in sorted(folders) if name != "include" and not name.startswith("_")
    ]
    return {script.path: script for scripts in families for script in scripts.values()}


SCRIPTS = family("lock")
