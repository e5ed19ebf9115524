"""Start or join the one embedded server of this folder, and give it up again.

A process has one connection to the supervisor, shared by all its ``Embedded`` objects. It is kept
as a bare descriptor, which nobody needs to close: the kernel does when the process ends, and a
forked child, which inherits it, keeps the server alive for itself.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import quote

from lualock.embedded import binaries, folder, supervisor
from lualock.embedded.supervisor import CONTROL, FAILED, LOG, SERVER, START_LIMIT_S, STARTED
from lualock.errors import EmbeddedUnavailable

LIMIT_S = 10.0
MARGIN_S = 2.0  # what the supervisor needs beyond the limit that it keeps itself
LOCAL_PEERPID = 2  # macOS, sys/un.h; its level SOL_LOCAL is 0


class Embedded:
    """One use of the embedded server, from ``start()``. Also a context manager that closes it.

    ``url`` is the server's ``unix://`` URL. The server runs while any process uses it.
    """

    def __init__(self, use: _Use) -> None:
        self._use = use
        self._closed = False
        self.url = use.url

    def __repr__(self) -> str:
        return f"<Embedded {self.url}{' closed' if self._closed else ''}>"

    def __enter__(self) -> Embedded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether this use is open and the server still runs. When not, ``start()`` again."""
        with _guard:
            return not self._closed and self._use.connected()

    def close(self) -> None:
        """Give up this use; the server ends when nobody uses it. A second call does nothing.

        In a forked child this gives up the child's use; the parent keeps its own.
        """
        with _guard:
            if not self._closed:
                self._closed = True
                self._use.count -= 1
                if self._use.count == 0:
                    self._use.drop()


class _Use:
    """This process's connection to one supervisor. Guarded by ``_guard``."""

    def __init__(self, path: str, connection: socket.socket) -> None:
        self.path = path
        self.url = "unix://" + quote(os.path.join(path, SERVER))
        self.count = 0
        self._identity = os.fstat(connection.fileno())
        self._fd: int | None = connection.detach()

    def connected(self) -> bool:
        return self._owns_fd() and not _ended(self._fd, 0)

    def drop(self) -> None:
        if self._fd is not None and self._owns_fd():
            os.close(self._fd)
        self._fd = None

    def _owns_fd(self) -> bool:
        """Whether the descriptor is still ours: a program that becomes a daemon closes them all."""
        if self._fd is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._fd), self._identity)
        except OSError:
            return False


# Reentrant, for a fork inside of a signal handler. Held during every fork, so that a child gets
# neither a half-done start nor the descriptor of a folder that its parent is locking.
_guard = threading.RLock()
_current: _Use | None = None
os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_guard.release
)


def start() -> Embedded:
    """Start the embedded server of this user, or join the one that runs. It has answered a PING.

    Blocks for some ten milliseconds, and for at most about ten seconds. Raises
    EmbeddedUnavailable when there is no server program, the server does not start or answer, or
    its folder is not private; InvalidArgument when LUALOCK_EMBEDDED_DIR cannot be used.
    """
    global _current
    path = folder.choose()
    deadline = time.monotonic() + LIMIT_S
    with _guard:
        try:
            if _current is None or _current.path != path or not _usable(_current, deadline):
                _current = _join_or_start(path, deadline)
        except TimeoutError as error:
            raise EmbeddedUnavailable(
                f"the embedded server in {path} does not answer: {error}"
            ) from error
        except OSError as error:
            raise EmbeddedUnavailable(f"the embedded server in {path}: {error}") from error
        _current.count += 1
        return Embedded(_current)


def _usable(use: _Use, deadline: float) -> bool:
    """Whether a use is good for one more. A server may die a moment before its supervisor."""
    return use.connected() and supervisor.ping(
        os.path.join(use.path, SERVER), deadline - time.monotonic()
    )


def _join_or_start(path: str, deadline: float) -> _Use:
    while True:
        # Once we are connected the server cannot end for want of users, so the lock is held no
        # longer than it takes to connect, or to start a server.
        folder_fd = folder.lock(path, deadline)
        connection = _join(path, folder_fd)
        if connection is None:
            connection = _start(path, folder_fd)
        try:
            if supervisor.ping(os.path.join(path, SERVER), deadline - time.monotonic()):
                return _Use(path, connection)
            # The server has died. Its supervisor is about to notice, and ends.
            if not _ended(connection.fileno(), max(deadline - time.monotonic(), 0)):
                raise TimeoutError("it is dead, and its supervisor does not end")
        finally:
            connection.close()


def _join(path: str, folder_fd: int) -> socket.socket | None:
    """Connect to the supervisor, and unlock the folder; None, still locked, when there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.path.join(path, CONTROL))
    except (FileNotFoundError, ConnectionError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        folder.unlock(folder_fd)
        raise
    folder.unlock(folder_fd)
    return connection


def _start(path: str, folder_fd: int) -> socket.socket:
    """Start a supervisor in the locked folder; its first user is the connection returned.

    The supervisor unlocks the folder when the server answers. Until then it holds the lock as
    well, so nobody meets a half-started server, even if this process dies.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            _end_orphan(path)
            supervisor.clear(folder_fd)
            process = _spawn(path, folder_fd, theirs.fileno())
        try:
            ours.settimeout(START_LIMIT_S + MARGIN_S)
            reply = _receive_all(ours)
        finally:
            # Ended long since, unless something interrupted us: it only gives birth to the
            # supervisor.
            process.kill()
            process.wait()
        if reply == STARTED:
            os.close(folder_fd)
            return ours
        if reply.startswith(FAILED):
            raise EmbeddedUnavailable(reply[len(FAILED) :].decode(errors="replace"))
        raise EmbeddedUnavailable(
            "the supervisor of the embedded server died at its start. "
            f"Its log ends: {supervisor.tail(folder_fd)}"
        )
    except BaseException:
        _give_up(path, folder_fd, ours)
        raise


def _give_up(path: str, folder_fd: int, connection: socket.socket) -> None:
    """After a start that failed or was interrupted: leave nothing behind."""
    with connection:
        connection.setblocking(False)
        try:
            while connection.recv(4096):
                pass
        except BlockingIOError:
            # The supervisor lives, shares the lock, and cleans up when it finds us gone.
            os.close(folder_fd)
            return
        except OSError:
            pass
    # It is dead, perhaps before it started. It may have given up the lock, and a successor may
    # have taken it: then the folder is the successor's.
    try:
        fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder_fd)
        return
    successor = _join(path, folder_fd)
    if successor is None:
        supervisor.remove(path, folder_fd)
        folder.unlock(folder_fd)
    else:
        successor.close()


def _spawn(path: str, folder_fd: int, user_fd: int) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise EmbeddedUnavailable("sys.executable names no Python to run the server's supervisor")
    # -I and -S: nothing of the user's environment, current directory or site-packages gets in.
    command = (sys.executable, "-I", "-S", supervisor.__file__)
    binary = binaries.find()
    log_fd = os.open(
        LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, mode=0o600, dir_fd=folder_fd
    )
    try:
        return subprocess.Popen(
            [*command, path, binary.path, str(folder_fd), str(user_fd)],
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=(folder_fd, user_fd),
            start_new_session=True,
        )
    finally:
        os.close(log_fd)


def _receive_all(connection: socket.socket) -> bytes:
    """The supervisor's report: STARTED, or what it said before it closed the connection."""
    reply = b""
    while reply != STARTED:
        piece = connection.recv(4096)
        if not piece:
            break
        reply += piece
    return reply


def _ended(fd: int | None, limit_s: float) -> bool:
    """Whether the supervisor closes the connection within the limit: it says nothing, ever."""
    if fd is None:
        return False
    # Not by select.poll, which eventlet takes away.
    with socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(limit_s)
        try:
            return not connection.recv(1)
        except (TimeoutError, BlockingIOError):
            return False
        except ConnectionError:
            return True


def _end_orphan(path: str) -> None:
    """Kill the server that a killed supervisor left running. The folder must be locked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LIMIT_S)
        try:
            connection.connect(os.path.join(path, SERVER))
            # Who listens on a socket in our private folder is our server. Asking the kernel for
            # its pid, rather than a file, cannot hit a process that got the number later.
            pid = _peer_pid(connection)
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
            else:
                connection.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
            while connection.recv(4096):
                pass
        except (FileNotFoundError, ConnectionError, ProcessLookupError):
            return  # it is dead


def _peer_pid(connection: socket.socket) -> int:
    """The pid of the process that listens at the other end; 0 when the system does not say."""
    try:
        if sys.platform == "linux":
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid = int.from_bytes(credentials[:4], sys.byteorder)
        elif sys.platform == "darwin":
            pid = connection.getsockopt(0, LOCAL_PEERPID)
        else:
            pid = 0
    except OSError:
        return 0
    return pid
