"""Start or join the embedded server of this folder, and stop using it.

A process has one connection to the supervisor, shared by all its ``Embedded`` objects. It is kept
as a bare descriptor. The kernel closes it when the process ends. A forked child inherits it, and so
keeps the server alive for itself.
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
from importlib import resources
from urllib.parse import quote

from lualock.embedded import binaries, folder, supervisor
from lualock.embedded.supervisor import CONTROL, FAILED, LOG, SERVER, START_LIMIT_S, STARTED
from lualock.errors import EmbeddedUnavailable

LIMIT_S = 10.0
MARGIN_S = 2.0  # for the supervisor, beyond its own time limit
LOCAL_PEERPID = 2  # macOS, sys/un.h; its level SOL_LOCAL is 0


class Embedded:
    """One use of the embedded server, from ``start()``; a context manager that closes it.

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
        """Whether this use is open and the server still runs. If not, ``start()`` again."""
        with _guard:
            return not self._closed and self._use.connected()

    def close(self) -> None:
        """End this use; the server ends after its last use. A second call does nothing.

        In a forked child this ends the child's use; the parent keeps its own.
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
        """Return whether the descriptor is still ours: a daemonizing program closes them all."""
        if self._fd is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._fd), self._identity)
        except OSError:
            return False


# Reentrant, for a fork inside a signal handler. Held during every fork, so that a child inherits
# neither an unfinished start nor the descriptor of a folder that its parent is locking.
_guard = threading.RLock()
_current: _Use | None = None
os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_guard.release
)


def start() -> Embedded:
    """Start the embedded server of this user, or join the one that runs; wait for its PONG.

    Its ``url`` works with redis-py. Celery's broker wants ``redis+socket://`` and the path.

    This blocks for some ten milliseconds, and for about ten seconds at most.

    :raises EmbeddedUnavailable: there is no server program, the server does not start or answer, or
        its folder is not private.
    :raises InvalidArgument: LUALOCK_EMBEDDED_DIR is not valid.
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
                f"could not use the embedded server in {path}: it does not answer ({error}). Kill "
                "it, or set LUALOCK_EMBEDDED_DIR to another folder"
            ) from error
        except OSError as error:
            raise EmbeddedUnavailable(
                f"could not use the embedded server in {path}: {error}"
            ) from error
        _current.count += 1
        return Embedded(_current)


def _usable(use: _Use, deadline: float) -> bool:
    """Return whether the server of a use still answers. It may die before its supervisor."""
    return use.connected() and supervisor.ping(
        os.path.join(use.path, SERVER), deadline - time.monotonic()
    )


def _join_or_start(path: str, deadline: float) -> _Use:
    while True:
        # Our connection keeps the server alive, so the lock is held only while we connect or start
        # a server.
        folder_fd = folder.lock(path, deadline)
        connection = _join(path, folder_fd)
        if connection is None:
            connection = _start(path, folder_fd)
        try:
            if supervisor.ping(os.path.join(path, SERVER), deadline - time.monotonic()):
                return _Use(path, connection)
            # The server has died. Its supervisor is about to notice, and ends.
            if not _ended(connection.fileno(), max(deadline - time.monotonic(), 0)):
                raise TimeoutError("the server is dead, and its supervisor does not end")
        finally:
            connection.close()


def _join(path: str, folder_fd: int) -> socket.socket | None:
    """Connect to the supervisor and unlock the folder; return None, still locked, without one."""
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
    """Start a supervisor in the locked folder; return the connection of its first user.

    The supervisor unlocks the folder when the server answers. Until then it also holds the lock, so
    no process can join a half-started server, even if this process dies.
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
            # It only forks the supervisor, and has ended unless we were interrupted.
            process.kill()
            process.wait()
        if reply == STARTED:
            os.close(folder_fd)
            return ours
        if reply.startswith(FAILED):
            raise EmbeddedUnavailable(reply[len(FAILED) :].decode(errors="replace"))
        raise EmbeddedUnavailable(
            "could not start the embedded server: its supervisor died at once. "
            f"Its log ends: {supervisor.tail(folder_fd)}"
        )
    except BaseException:
        _clean_up(path, folder_fd, ours)
        raise


def _clean_up(path: str, folder_fd: int, connection: socket.socket) -> None:
    """Leave nothing behind after a start that failed or was interrupted."""
    with connection:
        connection.setblocking(False)
        try:
            while connection.recv(4096):
                pass
        except BlockingIOError:
            # The supervisor lives, shares the lock, and cleans up when our connection is closed.
            os.close(folder_fd)
            return
        except OSError:
            pass
    # The supervisor is dead, or never started. If it released the lock and another process took it,
    # the folder belongs to that process.
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


def _program() -> tuple[str, ...]:
    """Return the arguments with which Python runs the supervisor."""
    if os.path.exists(supervisor.__file__):
        return (supervisor.__file__,)
    # This package is in a zip file.
    source = resources.files("lualock.embedded") / "supervisor.py"
    return "-c", source.read_text(encoding="utf-8")


def _spawn(path: str, folder_fd: int, user_fd: int) -> subprocess.Popen[bytes]:
    if not sys.executable or getattr(sys, "frozen", False):
        raise EmbeddedUnavailable(
            "could not start the embedded server: sys.executable does not name a Python for its "
            "supervisor (a frozen program has none). Pass the URL of a running server instead"
        )
    # -I and -S: without the user's environment, current directory and site-packages.
    command = (sys.executable, "-I", "-S", *_program())
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
    """Receive the supervisor's report: STARTED, or what it sent before it closed."""
    reply = b""
    while reply != STARTED:
        piece = connection.recv(4096)
        if not piece:
            break
        reply += piece
    return reply


def _ended(fd: int | None, limit_s: float) -> bool:
    """Return whether the supervisor disconnects within the limit; it sends nothing else."""
    if fd is None:
        return False
    # Not with select.poll, which eventlet removes.
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
            # A process that listens in our private folder is our server. The kernel knows its pid;
            # a pid from a file may belong to a later process.
            pid = _peer_pid(connection)
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
            else:
                connection.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
            while connection.recv(4096):
                pass
        except (FileNotFoundError, ConnectionError, ProcessLookupError):
            return  # the server is dead


def _peer_pid(connection: socket.socket) -> int:
    """Return the pid of the process at the other end; 0 if the system does not tell it."""
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
