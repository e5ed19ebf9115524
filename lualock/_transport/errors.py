"""Translate errors of the connection, and of the server, into errors of lualock."""

from __future__ import annotations

import functools
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import hiredis
from redis import exceptions as theirs

from lualock._protocol import RunScript, conflict
from lualock.errors import AccessDenied, LockError, LockUnavailable, UnsupportedServer

# What a broken connection raises.
CONNECTION_ERRORS = (theirs.RedisError, OSError, hiredis.ProtocolError)

# What redis-py raises if the replies to its handshake are malformed.
HANDSHAKE_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError)

NEEDS = "lualock needs Redis 6.2, Valkey 7.2 or later"

# The error codes of a server that cannot serve now: the cause, and what to do. The script wrote
# nothing: the server refuses it as a whole, or at its first write.
_CLUSTER = "this server is a cluster node", "Connecting to a cluster is not supported yet"
_REFUSALS = {
    "OOM": ("the server is out of memory (maxmemory)", "Free some memory, or raise the limit"),
    "READONLY": ("this server is a read-only replica", "Connect to the primary"),
    "NOREPLICAS": ("the server has too few replicas", "Start more, or set min-replicas-to-write"),
    "BUSY": ("the server is busy with a long script", "Try again later"),
    "LOADING": ("the server is still loading its data", "Try again later"),
    "MASTERDOWN": ("this replica has lost its primary", "Connect to the primary"),
    "MISCONF": ("the server cannot save its data, and refuses writes", "See the server's log"),
    "CLUSTERDOWN": ("the cluster is down", "Try again later"),
    "MOVED": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "ASK": _CLUSTER,
    "TRYAGAIN": ("the slot of the lock is being moved to another node", "Try again later"),
}

_WORDS = re.compile("[A-Z]{3,}")  # the error codes are among them


# The texts of an error, without a code, for a script that does what its user is not allowed to do.
_DENIED = ("ACL failure in script", "The user executing the script can't")


class CrossedReply(ConnectionError):
    """A reply that answers another request: the connection has lost the order of its replies."""


class ReplyTimeout(TimeoutError):
    """No reply came in time to a request that was sent completely."""


class NotReached(TimeoutError):
    """No connection was made in time."""


def is_noscript(reply: Any) -> bool:
    """Return whether the server does not know the script's digest (any more)."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def is_broken(error: BaseException) -> bool:
    """Return whether an error means that the connection is broken; if not, the caller raises it.

    An error that the program throws in from outside (by a signal handler, or a timer of gevent's)
    may look like one of the connection (``TimeoutError``). If redis-py or lualock wrapped it, the
    program's own error is raised here.
    """
    cause: BaseException | None = error
    try:
        while cause is not None and (cause is error or not _handled_above(cause)):
            if raised_by_handler(cause) or _thrown_in(cause):
                if cause is error:
                    return False
                raise cause
            cause = cause.__context__
        return isinstance(error, CONNECTION_ERRORS)
    finally:
        # An error and a frame that has it keep each other, and what is in its frames, alive.
        cause = None
        del error


def _handled_above(error: BaseException) -> bool:
    """Return whether a running frame has caught this error. The program then handles an error of
    its own, which is the context of each later error."""
    trace, frame = error.__traceback__, sys._getframe(1)
    caller: FrameType | None = frame
    while trace is not None and caller is not None:
        if caller is trace.tb_frame:
            return True
        caller = caller.f_back
    return False


# The text of a socket's timeout, in every runtime.
_SOCKET_TIMEOUT = re.compile("(^|operation )timed out$")
_LIBRARIES = {"builtins", "socket", "ssl", "redis", "hiredis", "lualock"}


def _thrown_in(error: BaseException) -> bool:
    """Return whether the program raised this error from outside during a wait, as
    ``gevent.Timeout(5, TimeoutError)`` does, or a thread that stops another one by an exception.
    Such an error has no arguments, or a class that no library below defines; an error of a socket
    has a text."""
    if not isinstance(error, OSError):
        return False
    defined_in = type(error).__module__.partition(".")[0]
    if defined_in not in _LIBRARIES:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        raised_in = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
        return defined_in != raised_in.partition(".")[0]  # else a connection class raised it
    if type(error) is TimeoutError and len(error.args) == 1:
        return not _SOCKET_TIMEOUT.search(str(error))
    return type(error) in (TimeoutError, OSError, ConnectionError) and not error.args


def raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal handler of the program raised this error."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code(handler: Any) -> Any:
    """Return the code that the frame of a signal handler runs; ``None`` if it has no frame."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)


def is_demoted(reply: Any) -> bool:
    """Return whether the server is no longer a primary. A new connection to the same address (a
    name, a load balancer) may lead to the primary."""
    return isinstance(reply, hiredis.ReplyError) and bool(
        {"READONLY", "MASTERDOWN"} & set(_WORDS.findall(str(reply)))
    )


def reply_or_error(reply: Any, call: RunScript) -> Any:
    """Return a reply, or if it is an error the :class:`LockError` that it means."""
    return reply_error(str(reply), call) if isinstance(reply, hiredis.ReplyError) else reply


def reply_error(text: str, call: RunScript | None = None) -> LockError:
    """Return what an error reply of the *server* means. The request had no effect; but if it was
    sent on two connections, the outcome of the other copy is unknown."""
    error = _reply_error(text, b"" if call is None else call.parts[0])
    if call is not None and call.doubled and isinstance(error, LockUnavailable):
        error.outcome_unknown = True
    return error


def _reply_error(text: str, key: bytes) -> LockError:
    # Before Redis 7 an error inside a script comes after 'ERR Error running script (...): '.
    words = set(_WORDS.findall(text))
    if words & {"NOAUTH", "WRONGPASS", "NOPERM"} or any(part in text for part in _DENIED):
        return AccessDenied(
            f"could not use the server: it denies access to this user ({text}). Check the user "
            "name, the password and the ACL rules; lualock.acl_rule(prefix) returns what is needed"
        )
    if "WRONGTYPE" in words:
        return conflict(key)
    if "unknown command" in text.lower():
        return UnsupportedServer(
            "could not use the server: it does not know a command that lualock needs "
            f"({text}). {NEEDS}. If the server is one of these, its configuration (rename-command) "
            "or a proxy before it hides the command: give it back, or connect to the server itself"
        )
    for word, refusal in _REFUSALS.items():
        if word in words:
            cause, advice = refusal
            error = LockUnavailable(f"could not run the script: {cause} ({text}). {advice}")
            error.retryable = refusal is not _CLUSTER
            return error
    error = LockUnavailable(f"could not run the script: the server refused it ({text})")
    if "DB index" in text:
        error = LockUnavailable(f"could not use the server: it has no such database ({text})")
        error.retryable = False
    return error


def connect_error(error: BaseException, address: str) -> LockError:
    """Return what a failure to *connect* means. Nothing was sent."""
    context = error.__context__
    if context is not None and not _handled_above(context):
        # An error that redis-py keeps would keep the program's frames alive.
        drop_tracebacks([context])
    context = None
    if isinstance(error, theirs.AuthenticationError | theirs.NoPermissionError):
        return AccessDenied(
            f"could not connect to the server at {address}: it denies access to this user "
            f"({error}). Check the user name and the password of the connection"
        )
    if isinstance(error, theirs.ResponseError) or "unknown command" in str(error).lower():
        return reply_error(str(error))
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        # Trying again would hide the cause behind the end of the caller's time.
        failed = LockUnavailable(
            f"could not connect to the server at {address}: {_text(error)}. Check ssl_ca_certs, "
            "and that the certificate is for this host"
        )
        failed.retryable = False
        return failed
    return LockUnavailable(
        f"could not connect to the server at {address}: {_text(error)}. Is it running, and is the "
        "address right?"
    )


def handshake_error(error: BaseException) -> ConnectionError:
    """Return the error for a handshake with malformed replies."""
    return ConnectionError(f"its handshake is malformed ({type(error).__name__}: {error})")


def lost_reply_error(error: BaseException, address: str) -> LockUnavailable:
    """Return what it means that a connection broke after something was sent."""
    return LockUnavailable(
        f"could not get a reply from the server at {address}: the connection broke "
        f"({_text(error)}). The request may or may not have been carried out",
        outcome_unknown=True,
    )


def late_reply_error(address: str) -> LockUnavailable:
    """Return the error for a request without a reply in time."""
    return lost_reply_error(TimeoutError("the time is over"), address)


def _text(error: BaseException) -> str:
    """Return an error's text, for use inside a sentence."""
    return (str(error) or type(error).__name__).rstrip(". ")


def drop_tracebacks(errors: Sequence[BaseException]) -> None:
    """Drop the tracebacks of errors that were handled. The protocol's frames may still refer to
    them, and they to all frames up to the program's own: a lease that the program dropped would
    exist, and be renewed, until the garbage collector runs. An error that the program is handling
    keeps its traceback."""
    found: list[BaseException] = [*errors]
    seen: set[int] = set()
    while found:
        error = found.pop()
        if id(error) not in seen:
            seen.add(id(error))
            # redis-py keeps one in the frame that raised it, and then raises another.
            causes = error.__cause__, error.__context__
            found += [one for one in causes if one is not None and not _handled_above(one)]
            error.__traceback__ = None
