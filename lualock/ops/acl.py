"""Derive the ACL rule for a server user that needs locks only: :func:`acl_rule`.

No list has to be kept up to date: the commands are read from the scripts, and from the requests of
the drivers.
"""

from __future__ import annotations

import re

from lualock._core.keys import DEFAULT_PREFIX, lock_key, prefix_bytes
from lualock._transport import codec
from lualock.scripts import every

# A second word in capitals is a subcommand; arguments of other commands are variables.
_CALLED = re.compile(rb"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?")

_GLOB = frozenset("*?[\\")


def acl_rule(prefix: str | bytes = DEFAULT_PREFIX) -> str:
    """Return the words of ``ACL SETUSER`` that allow locks and jobs under a prefix, and no more.

    They name the keys, the channels, and each command. A user whose connections choose a database
    other than 0, or have a ``client_name``, also needs ``+select`` or ``+client|setname``.

    :raises InvalidArgument: the prefix is not valid.
    """
    raw = prefix_bytes(prefix)
    keys = lock_key(raw, "name").partition(b"{")[0] + b"{"
    channels = codec.new_channel(raw).rpartition(b":")[0] + b":"
    commands = (f"+{command}" for command in sorted(_commands()))
    # Before Redis 7 a new user may use all channels, and adding one is an error.
    names = f"~{_pattern(keys)}*", "resetchannels", f"&{_pattern(channels)}*"
    return " ".join((*names, *commands))


def _commands() -> set[str]:
    scripts = every().values()
    # Every user may send HELLO.
    sent = [codec.TIME, codec.PING, codec.subscribe_command(b"")]
    sent += [command for script in scripts for command in (script.evalsha, script.eval)]
    found = {command.split(b"\r\n")[2] for command in sent}
    for script in scripts:
        found |= {b"|".join(filter(None, words)) for words in _CALLED.findall(script.source)}
    return {command.decode().lower() for command in found}


def _pattern(raw: bytes) -> str:
    """Return a pattern that matches these bytes only.

    A rule cannot contain a space or an unprintable byte: there the pattern matches any byte.
    """
    text = raw.decode("utf-8", "surrogateescape")
    return "".join("\\" + letter if letter in _GLOB else _shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter.isprintable() and not letter.isspace():
        return letter
    return "?" * len(letter.encode("utf-8", "surrogateescape"))
