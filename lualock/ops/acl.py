"""What a user of the server's must be allowed who is for locks only: :func:`acl_rule`.

Nothing here is a list to be kept up to date: the commands are read from the scripts themselves, and
from what the drivers send.
"""

from __future__ import annotations

import re

from lualock._core.keys import DEFAULT_PREFIX, lock_key, prefix_bytes
from lualock._transport import codec
from lualock.jobs import verbs
from lualock.scripts import SCRIPTS

# A second word in capitals is a subcommand; what is said to other commands are variables.
_CALLED = re.compile(rb"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?")

_GLOB = frozenset("*?[\\")


def acl_rule(prefix: str | bytes = DEFAULT_PREFIX) -> str:
    """What a user needs for locks and jobs under a prefix, and no more, as the words of
    ``ACL SETUSER``: the keys, the channels, and each command.

    Whose connections also choose a database (not 0) or have a ``client_name`` needs ``+select`` or
    ``+client|setname`` besides.

    :raises InvalidArgument: that can be no prefix.
    """
    raw = prefix_bytes(prefix)
    keys = lock_key(raw, "name").partition(b"{")[0] + b"{"
    channels = codec.new_channel(raw).rpartition(b":")[0] + b":"
    commands = (f"+{command}" for command in sorted(_commands()))
    # Before Redis 7 a new user has all channels, and none can be added to these.
    names = f"~{_pattern(keys)}*", "resetchannels", f"&{_pattern(channels)}*"
    return " ".join((*names, *commands))


def _commands() -> set[str]:
    every = [*SCRIPTS.values(), *verbs.SCRIPTS.values()]
    # (Any user may say HELLO.)
    sent = [codec.TIME, codec.PING, codec.subscribe_command(b""), every[0].evalsha, every[0].eval]
    found = {command.split(b"\r\n")[2] for command in sent}
    for script in every:
        found |= {b"|".join(filter(None, words)) for words in _CALLED.findall(script.source)}
    return {command.decode().lower() for command in found}


def _pattern(raw: bytes) -> str:
    """What these bytes, and no others, match; but a rule can have no space, and so on: there any
    byte does."""
    text = raw.decode("utf-8", "surrogateescape")
    return "".join("\\" + letter if letter in _GLOB else _shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter.isprintable() and not letter.isspace():
        return letter
    return "?" * len(letter.encode("utf-8", "surrogateescape"))
