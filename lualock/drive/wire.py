"""Calls to bytes, and the client's errors to ours."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import ssl
import struct
import sys
from collections.abc import Sequence
from secrets import token_hex
from types import FrameType
from typing import Any

import hiredis
from redis import exceptions as theirs

from lualock.errors import (
    AccessDenied,
    LockError,
    LockUnavailable,
    UnsupportedServer,
)
from lualock.protocol import Call, conflict
from lualock.supply import Supply

CHUNK = 4096

# What a broken connection raises.
LINE_ERRORS = (theirs.RedisError, OSError, hiredis.ProtocolError)

SILENCE, SILENCE_LEAST_S = 1 / 4, 0.2
"""After which share of its time, and no sooner than that, a request without a reply is sent again
on a fresh connection: the old one may be dead without a word (a NAT, a load balancer)."""

# What redis-py raises where the replies to its handshake are not what they should be.
NO_HANDSHAKE = (AttributeError, IndexError, KeyError, TypeError, ValueError)

LEAST_S = 0.001
"""The least that a socket is given when the time is over; zero would mean not to wait at all."""

MORE = object()  # a reply is not complete yet
# hiredis before 3.2 has no type for pushes of RESP3; none is ever asked for then.
PushNotification = getattr(hiredis, "PushNotification", ())

FLOORS = {"redis": (6, 2), "valkey": (7, 2)}

# How a word of so many bytes begins: made beforehand, for formatting a number costs as much as all
# else that is done to pack a command.
_SMALL = 256
_SIZE = [b"\r\n$%d\r\n" % size for size in range(_SMALL)]

# What a server says when it cannot serve now, and what to do about it. Nothing was written: a
# script is refused as a whole, or fails at its first write.
_REFUSALS = {
    "OOM": "the server is out of memory (maxmemory): free some, or raise the limit",
    "READONLY": "this server is a read-only replica: connect to the primary",
    "NOREPLICAS": "the server has too few replicas to accept writes (min-replicas-to-write)",
    "BUSY": "the server is busy with somebody's long script",
    "LOADING": "the server is still loading its data",
    "MASTERDOWN": "this replica has lost its primary",
    "MISCONF": "the server refuses writes because it cannot save its data (see its log)",
    "CLUSTERDOWN": "the cluster is down",
    "MOVED": "this server is a cluster node: connecting to a cluster is not supported yet",
    "CROSSSLOT": "this server is a cluster node: connecting to a cluster is not supported yet",
    "TRYAGAIN": "the lock's slot is being moved to another node",
}

_WORDS = re.compile("[A-Z]{3,}")  # the codes in an error are some of them

# What a server says of a script that does what its user may not: with no code word of its own.
_FORBIDDEN = ("ACL failure in script", "The user executing the script can't")


_NUMBERS = struct.Struct("8s" * 32)


def _make_numbers() -> list[bytes]:
    return list(_NUMBERS.unpack(os.urandom(_NUMBERS.size)))


_numbers = Supply(_make_numbers)


class CrossedReply(ConnectionError):
    """A reply that answers another request: the connection has lost the order of its replies."""


class Unanswered(TimeoutError):
    """No reply came in time, to a request that was sent whole."""


class NotReached(TimeoutError):
    """No connection was made in time."""


def pack(call: Call, *, source: bool = False) -> tuple[bytes, bytes]:
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


def silence_s(left_s: float) -> float:
    """How long a connection may be silent when so much time is left for a reply."""
    return max(SILENCE_LEAST_S, left_s * SILENCE)


def is_noscript(reply: Any) -> bool:
    """Whether the server does not know the script's digest (any more)."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def is_broken(error: BaseException) -> bool:
    """Whether an error means that the connection is broken; else it is not ours to deal with.

    What the program throws in from outside, a signal handler or a timer of gevent's, may look like
    an error of the connection (``TimeoutError``). Where that was made another one, by redis-py or
    by us, the program's is raised here.
    """
    cause: BaseException | None = error
    try:
        while cause is not None and (cause is error or not handled_above(cause)):
            if raised_by_handler(cause) or _thrown_in(cause):
                if cause is error:
                    return False
                raise cause
            cause = cause.__context__
        return isinstance(error, LINE_ERRORS)
    finally:
        # An error and a frame that has it keep each other, and what is in its frames, alive.
        cause = None
        del error


def handled_above(error: BaseException) -> bool:
    """Whether a frame that still runs caught this error: the program does all this while it deals
    with an error of its own, which therefore is the context of each that comes after it."""
    trace, frame = error.__traceback__, sys._getframe(1)
    caller: FrameType | None = frame
    while trace is not None and caller is not None:
        if caller is trace.tb_frame:
            return True
        caller = caller.f_back
    return False


# What a socket says whose time is over, in every runtime.
_SOCKETS_OWN = re.compile("(^|operation )timed out$")
_BELOW = {"builtins", "socket", "ssl", "redis", "hiredis", "lualock"}


def _thrown_in(error: BaseException) -> bool:
    """Whether the program had this error raised here while something was waited for, as
    ``gevent.Timeout(5, TimeoutError)`` does, or who stops a thread by an exception. Such an error
    was made of a class alone, or is of a class that nobody below knows; a socket's says more."""
    if not isinstance(error, OSError):
        return False
    made_in = type(error).__module__.partition(".")[0]
    if made_in not in _BELOW:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        raised_in = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
        return made_in != raised_in.partition(".")[0]  # else a connection class raised its own
    if type(error) is TimeoutError and len(error.args) == 1:
        return not _SOCKETS_OWN.search(str(error))
    return type(error) in (TimeoutError, OSError, ConnectionError) and not error.args


def raised_by_handler(error: BaseException) -> bool:
    """Whether a signal handler of the program raised this error."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code(handler: Any) -> Any:
    """What a signal handler's frame runs; ``None`` if it has none."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)


def is_demoted(reply: Any) -> bool:
    """Whether it was said by a server that is no primary any more: whoever connects anew to the
    same address (a name, a balancer) may be sent to the one that is."""
    return isinstance(reply, hiredis.ReplyError) and bool(
        {"READONLY", "MASTERDOWN"} & set(_WORDS.findall(str(reply)))
    )


def reply_error(text: str, call: Call | None = None) -> LockError:
    """What an error that the *server* answered means. The request had no effect; but where it was
    sent on two connections, nothing is known of the other copy."""
    error = _reply_error(text, b"" if call is None else call.parts[0])
    if call is not None and call.doubled and isinstance(error, LockUnavailable):
        error.outcome_unknown = True
    return error


def _reply_error(text: str, key: bytes) -> LockError:
    # Before Redis 7 an error inside a script stands behind 'ERR Error running script (...): '.
    words = set(_WORDS.findall(text))
    if words & {"NOAUTH", "WRONGPASS", "NOPERM"} or any(said in text for said in _FORBIDDEN):
        return AccessDenied(
            f"the server refuses this user ({text}): check the user name, the password and the "
            "ACL rules of the connection"
        )
    if "WRONGTYPE" in words:
        return conflict(key)
    if "unknown command" in text.lower():
        return UnsupportedServer(
            f"the server does not know a command that lualock needs ({text}): lualock needs "
            "Redis 6.2, Valkey 7.2 or later"
        )
    for word, advice in _REFUSALS.items():
        if word in words:
            return LockUnavailable(f"{advice} ({text})")
    return LockUnavailable(f"the server refused the request: {text}")


def connect_error(error: BaseException, where: str) -> LockError:
    """What a failure to *connect* means. Nothing was sent."""
    before = error.__context__
    if before is not None and not handled_above(before):
        dealt_with([before])  # what redis-py keeps would keep the program's frames
    before = None
    if isinstance(error, theirs.AuthenticationError | theirs.NoPermissionError):
        return AccessDenied(
            f"the server at {where} refuses this user ({error}): check the user name and the "
            "password of the connection"
        )
    if isinstance(error, theirs.ResponseError) or "unknown command" in str(error).lower():
        return reply_error(str(error))
    return LockUnavailable(
        f"no connection to the server at {where}: {_said(error)}. Is it running, and is "
        "the address right?"
    )


def no_handshake(error: BaseException) -> ConnectionError:
    """What is wrong with a connection whose handshake redis-py could not make sense of."""
    return ConnectionError(f"its handshake made no sense ({type(error).__name__}: {error})")


def _said(error: BaseException) -> str:
    """What an error says, to stand inside a sentence."""
    return (str(error) or type(error).__name__).rstrip(". ")


def lost_reply(error: BaseException, where: str) -> LockUnavailable:
    """What a connection that broke after something was sent means."""
    return LockUnavailable(
        f"the connection to the server at {where} broke before the reply came ({_said(error)}): "
        "the request may or may not have been carried out",
        outcome_unknown=True,
    )


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


def dealt_with(errors: Sequence[BaseException]) -> None:
    """These errors are of no interest any more. The protocol may still have them in its frames,
    and they those frames, and so the ones that called it, up to the program's own: until the
    collector came, a lease that the program dropped would be there, and be renewed. An error that
    the program is dealing with keeps what it has: its own frames."""
    found: list[BaseException] = [*errors]
    seen: set[int] = set()
    while found:
        error = found.pop()
        if id(error) not in seen:
            seen.add(id(error))
            # redis-py keeps one in the frame that raised it, and then raises another.
            before = error.__cause__, error.__context__
            found += [one for one in before if one is not None and not handled_above(one)]
            error.__traceback__ = None


def answer(reply: Any, call: Call) -> Any:
    """A reply: itself, or the error that it means."""
    return reply_error(str(reply), call) if isinstance(reply, hiredis.ReplyError) else reply


def receive_now(connected: socket.socket) -> bytes:
    """What has been received, without waiting.

    :raises BlockingIOError: nothing has.
    """
    usual_s = connected.gettimeout()
    if usual_s is None:
        return connected.recv(CHUNK, socket.MSG_DONTWAIT)
    connected.settimeout(0)
    try:
        return connected.recv(CHUNK)
    except ssl.SSLWantReadError:
        raise BlockingIOError from None
    finally:
        connected.settimeout(usual_s)
