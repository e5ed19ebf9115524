"""What an error of the connection, or of the server, means."""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Sequence
from typing import Any

import hiredis
from redis import exceptions as theirs

from lualock._protocol import RunScript, conflict
from lualock.errors import AccessDenied, LockError, LockUnavailable, UnsupportedServer

# What a broken connection raises.
LINE_ERRORS = (theirs.RedisError, OSError, hiredis.ProtocolError)


# What redis-py raises where the replies to its handshake are not what they should be.
NO_HANDSHAKE = (AttributeError, IndexError, KeyError, TypeError, ValueError)


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


class CrossedReply(ConnectionError):
    """A reply that answers another request: the connection has lost the order of its replies."""


class Unanswered(TimeoutError):
    """No reply came in time, to a request that was sent whole."""


def is_noscript(reply: Any) -> bool:
    """Whether the server does not know the script's digest (any more)."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def is_broken(error: BaseException) -> bool:
    """Whether an error means that the connection is broken; else it is not ours to deal with.

    What a signal handler of the program raised may look like an error of the connection
    (``TimeoutError``). Where redis-py made it one of its own, the handler's is raised here.
    """
    cause: BaseException | None = error
    try:
        while cause is not None:
            if raised_by_handler(cause):
                if cause is error:
                    return False
                raise cause
            cause = cause.__context__
        return isinstance(error, LINE_ERRORS)
    finally:
        # An error and a frame that has it keep each other, and what is in its frames, alive.
        cause = None
        del error


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


def reply_error(text: str, call: RunScript | None = None) -> LockError:
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
    if error.__context__ is not None:
        dealt_with([error.__context__])  # what redis-py keeps would keep the program's frames
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


def dealt_with(errors: Sequence[BaseException]) -> None:
    """These errors are of no interest any more. The protocol may still have them in its frames,
    and they those frames, and so the ones that called it, up to the program's own: until the
    collector came, a lease that the program dropped would be there, and be renewed."""
    found: list[BaseException | None] = [*errors]
    seen: set[int] = set()
    while found:
        error = found.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            # redis-py keeps one in the frame that raised it, and then raises another.
            found += error.__cause__, error.__context__


def answer(reply: Any, call: RunScript) -> Any:
    """A reply: itself, or the error that it means."""
    return reply_error(str(reply), call) if isinstance(reply, hiredis.ReplyError) else reply
