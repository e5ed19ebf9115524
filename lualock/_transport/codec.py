"""Calls to bytes, and bytes to replies."""

from __future__ import annotations

import os
import struct
from secrets import token_hex
from typing import Any

import hiredis

from lualock._core.supply import Supply
from lualock._protocol import RunScript
from lualock._transport.errors import CrossedReply, reply_error
from lualock.errors import UnsupportedServer

MORE = object()  # a reply is not complete yet


# hiredis before 3.2 has no type for pushes of RESP3; none is ever asked for then.
PushNotification = getattr(hiredis, "PushNotification", ())


FLOORS = {"redis": (6, 2), "valkey": (7, 2)}


# How a word of so many bytes begins: made beforehand, for formatting a number costs as much as all
# else that is done to pack a command.
_SMALL = 256
_SIZE = [b"\r\n$%d\r\n" % size for size in range(_SMALL)]
_NUMBERS = struct.Struct("8s" * 32)


def _make_numbers() -> list[bytes]:
    return list(_NUMBERS.unpack(os.urandom(_NUMBERS.size)))


_numbers = Supply(_make_numbers)


def pack(call: RunScript, *, source: bool = False) -> tuple[bytes, bytes]:
    """The command's bytes, with ``source`` those that carry the whole script; and the proof that
    its reply begins with."""
    script, parts = call.script, call.parts
    pieces = [script.eval if source else script.evalsha]
    for part in parts:
        size = len(part)
        pieces.append(_SIZE[size] if size < _SMALL else b"\r\n$%d\r\n" % size)
        pieces.append(part)
    if script.proof_at is not None:
        pieces.append(b"\r\n")
        return b"".join(pieces), parts[script.proof_at]
    try:
        proof = _numbers.spare.pop()
    except IndexError:
        proof = _numbers.more()
    pieces += _SIZE[len(proof)], proof, b"\r\n"
    return b"".join(pieces), proof


def proved(reply: Any, proof: bytes) -> Any:
    """What a reply says behind its proof. An error has none: see :func:`echo`.

    :raises CrossedReply: it answers another request.
    """
    if type(reply) is bytes:
        if reply.startswith(proof):
            return reply[len(proof) :]
    elif type(reply) is list:
        if reply and reply[0] == proof:
            del reply[0]
            return reply
    elif type(reply) is hiredis.ReplyError:
        return reply
    raise CrossedReply("it answered another request")


def echo() -> tuple[bytes, bytes]:
    """A command, and the proof that its reply begins with: that proves that the replies before it
    were in order, too. It follows what says nothing of the request that it answers: an error, or
    the server's time. (A server that answers errors may refuse this one as well.)"""
    nonce = os.urandom(8).hex().encode()
    return b"*2\r\n$4\r\nPING\r\n$16\r\n%b\r\n" % nonce, nonce


class Packer:
    """What redis-py packs the words of its handshake with.

    hiredis asks an integer for its text, and Python runs signal handlers there: if one raises,
    hiredis crashes the process. So it is given bytes only, as :func:`pack` does.
    """

    def pack(self, *words: Any) -> list[bytes]:
        """A command as the bytes to send."""
        parts: Any = tuple(w if isinstance(w, bytes) else str(w).encode() for w in words)
        return [hiredis.pack_command(parts)]


class Replies:
    """What a connection has received, reply by reply. redis-py made the connection; talking on
    it needs none of its command machinery, which costs more than the network."""

    __slots__ = ("_pushes", "feed", "gets")

    def __init__(self, *, pushes: bool = False) -> None:
        self._pushes = pushes
        reader = hiredis.Reader(notEnoughData=MORE)
        self.feed = reader.feed
        self.gets = reader.gets  # as :meth:`next`, pushes included

    def next(self) -> Any:
        """The next reply, :data:`MORE` if it is not all there; a ``ReplyError`` is returned."""
        reply = self.gets()
        while type(reply) is PushNotification and not self._pushes:
            reply = self.gets()  # RESP3: nothing that we asked for
        return reply


def payload(reply: Any) -> bytes | None:
    """What a message says; ``None`` for what is no message."""
    if isinstance(reply, list) and reply[0] == b"message":
        said: bytes = reply[2]
        return said
    return None


HELLO = b"*1\r\n$5\r\nHELLO\r\n"
TIME = b"*1\r\n$4\r\nTIME\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"


def new_channel(prefix: bytes) -> bytes:
    """A channel for one process (or event loop). Without a space: in a ticket that ends it."""
    return prefix.replace(b"%", b"%25").replace(b" ", b"%20") + b":wake:" + token_hex(8).encode()


def subscribe(channel: bytes) -> bytes:
    """The command that listens to a channel."""
    return b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(channel), channel)


def check_subscribed(reply: Any, channel: bytes) -> None:
    """Check the answer to SUBSCRIBE.

    :raises AccessDenied: the server's rules forbid this user the channel.
    :raises CrossedReply: it answers another request.
    """
    if isinstance(reply, hiredis.ReplyError):
        raise reply_error(str(reply))
    if not isinstance(reply, list) or reply[:2] != [b"subscribe", channel]:
        raise CrossedReply("it answered another request")


def check_hello(reply: Any) -> None:
    """Check the server's version in its answer to HELLO.

    :raises UnsupportedServer: it is older than the floor.
    """
    if isinstance(reply, hiredis.ReplyError):  # without arguments it came with Redis 6.2
        raise UnsupportedServer(
            f"the server does not answer HELLO ({reply}); lualock needs Redis 6.2, Valkey 7.2 or "
            "later"
        )
    if isinstance(reply, list):  # RESP2 answers a map as a flat list
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    server = bytes(reply.get(b"server", b"redis")).decode()
    version = bytes(reply.get(b"version", b"")).decode()
    floor = FLOORS.get(server)
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return  # a server with a version scheme of its own: its commands will tell
    if floor is not None and found < floor:
        raise UnsupportedServer(
            f"the server is {server} {version}; lualock needs Redis 6.2, Valkey 7.2 or later"
        )


def server_us(reply: Any) -> int:
    """The server's time, in microseconds, from its answer to TIME."""
    if isinstance(reply, hiredis.ReplyError):
        raise reply_error(str(reply))
    return int(reply[0]) * 1_000_000 + int(reply[1])
