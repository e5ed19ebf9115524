"""Turn calls into bytes, and bytes into replies; check that a reply answers its request."""

from __future__ import annotations

import os
import struct
from secrets import token_hex
from typing import Any

import hiredis

from lualock._core.supply import Supply
from lualock._protocol import RunScript
from lualock._transport.errors import NEEDS, CrossedReply, reply_error
from lualock.errors import AccessDenied, UnsupportedServer

INCOMPLETE = object()  # a reply is not complete yet


# hiredis before 3.2 has no type for RESP3 pushes; then no connection uses RESP3.
PushNotification = getattr(hiredis, "PushNotification", ())


HELLO = b"*1\r\n$5\r\nHELLO\r\n"
TIME = b"*1\r\n$4\r\nTIME\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"

_MIN_VERSIONS = {"redis": (6, 2), "valkey": (7, 2)}

# The header of a word of each size, made in advance: formatting a number costs as much as all the
# rest of packing a command.
_SMALL = 256
_HEADERS = [b"\r\n$%d\r\n" % size for size in range(_SMALL)]
_PROOFS = struct.Struct("8s" * 32)
_PROOF_HEADER = _HEADERS[8]


def _make_proofs() -> list[bytes]:
    return list(_PROOFS.unpack(os.urandom(_PROOFS.size)))


_proofs = Supply(_make_proofs)


def pack(call: RunScript, *, source: bool = False) -> tuple[bytes, bytes]:
    """Return the command's bytes, and the proof that its reply begins with. With ``source`` the
    command has the whole script."""
    script, parts = call.script, call.parts
    pieces = [script.eval if source else script.evalsha]
    try:
        for part in parts:
            pieces.append(_HEADERS[len(part)])
            pieces.append(part)
    except IndexError:  # a part is longer than most
        pieces[1:] = [piece for part in parts for piece in (b"\r\n$%d\r\n" % len(part), part)]
    if script.proof_at is not None:
        pieces.append(b"\r\n")
        return b"".join(pieces), parts[script.proof_at]
    try:
        proof = _proofs.spare.pop()
    except IndexError:
        proof = _proofs.more()
    pieces += _PROOF_HEADER, proof, b"\r\n"
    return b"".join(pieces), proof


def strip_proof(reply: Any, proof: bytes) -> Any:
    """Check that a reply begins with its proof, and return the rest. An error has no proof: see
    :func:`echo`.

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
    """Return a PING, and the proof that its reply begins with. The proof shows that the replies
    before it were in order, too.

    Send it after a request whose reply proves nothing: an error, or the server's time. (A server
    that answers errors may refuse this command as well.)
    """
    nonce = os.urandom(8).hex().encode()
    return b"*2\r\n$4\r\nPING\r\n$16\r\n%b\r\n" % nonce, nonce


class Packer:
    """Pack the commands of redis-py's handshake.

    hiredis asks an integer for its text, and Python runs signal handlers there: if one raises,
    hiredis crashes the process. So hiredis gets bytes only, as in :func:`pack`.
    """

    def pack(self, *words: Any) -> list[bytes]:
        """Return a command as the bytes to send."""
        parts: Any = tuple(w if isinstance(w, bytes) else str(w).encode() for w in words)
        return [hiredis.pack_command(parts)]


class Replies:
    """Parse what a connection receives into replies. redis-py opened the connection, but its
    command machinery is not used: it costs more than the network."""

    __slots__ = ("_pushes", "feed", "gets")

    def __init__(self, *, pushes: bool = False) -> None:
        self._pushes = pushes
        reader = hiredis.Reader(notEnoughData=INCOMPLETE)
        self.feed = reader.feed
        self.gets = reader.gets  # as :meth:`next`, pushes included

    def next(self) -> Any:
        """Return the next reply (a ``ReplyError`` is not raised), or :data:`INCOMPLETE`."""
        reply = self.gets()
        while type(reply) is PushNotification and not self._pushes:
            reply = self.gets()  # RESP3: no reply to a request of ours
        return reply


def message_payload(reply: Any) -> bytes | None:
    """Return the payload of a message, or ``None`` if the reply is not a message."""
    if isinstance(reply, list) and reply[0] == b"message":
        payload: bytes = reply[2]
        return payload
    return None


def new_channel(prefix: bytes) -> bytes:
    """Return a channel for a process or event loop. It has no space: that ends it in a ticket."""
    return prefix.replace(b"%", b"%25").replace(b" ", b"%20") + b":wake:" + token_hex(8).encode()


def subscribe_command(channel: bytes) -> bytes:
    """Return the command that subscribes to a channel."""
    return b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(channel), channel)


def check_subscribed(reply: Any, channel: bytes) -> None:
    """Check the reply to SUBSCRIBE.

    :raises AccessDenied: the server's ACL rules deny this user the channel.
    :raises CrossedReply: it answers another request.
    """
    if isinstance(reply, hiredis.ReplyError):
        raise reply_error(str(reply))
    if not isinstance(reply, list) or reply[:2] != [b"subscribe", channel]:
        raise CrossedReply("it answered another request")


def check_hello(reply: Any) -> None:
    """Check the server's version in its reply to HELLO.

    :raises UnsupportedServer: it is too old, or hides the command.
    :raises AccessDenied: the server's ACL rules deny this user the command.
    """
    if isinstance(reply, hiredis.ReplyError):
        error = reply_error(str(reply))
        if isinstance(error, AccessDenied | UnsupportedServer):
            raise error
        # HELLO without arguments came with Redis 6.2.
        raise UnsupportedServer(f"could not use the server: it rejects HELLO ({reply}). {NEEDS}")
    if isinstance(reply, list):  # RESP2 answers a map as a flat list
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    server = bytes(reply.get(b"server", b"redis")).decode()
    version = bytes(reply.get(b"version", b"")).decode()
    floor = _MIN_VERSIONS.get(server)
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return  # a server with a version scheme of its own: its replies will show what it can do
    if floor is not None and found < floor:
        raise UnsupportedServer(f"could not use the server: it is {server} {version}. {NEEDS}")


def publish_nothing(prefix: bytes) -> bytes:
    """Return a request to publish an empty message, to a channel that has no subscriber.

    A user without the right to do so acquires and releases locks, but its waiters wait for the end
    of a lease: the message of a hand-over fails without an error.
    """
    channel = new_channel(prefix)
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$0\r\n\r\n" % (len(channel), channel)


def check_published(reply: Any) -> None:
    """Check the reply to that request.

    :raises AccessDenied: the server's ACL rules deny this user the channel, or the command.
    :raises UnsupportedServer: the server has no such command.
    """
    if isinstance(reply, hiredis.ReplyError):
        raise reply_error(str(reply))


def server_us(reply: Any) -> int:
    """Return the server's time, in microseconds, from its reply to TIME."""
    if isinstance(reply, hiredis.ReplyError):
        raise reply_error(str(reply))
    return int(reply[0]) * 1_000_000 + int(reply[1])
