"""The process that owns the embedded server: start it, count its users, end it.

It runs as a script, ``python -I -S supervisor.py FOLDER BINARY LOCK_FD USER_FD``, so it imports
only the standard library. The names of the files in the folder, and the PING, are shared with the
processes that use the server.

A user is a process with a connection to the supervisor. The kernel closes the connection when the
process dies for any reason, so counting connections counts users. After the last one, the
supervisor takes the folder's lock, checks that no new user came, ends the server and removes the
folder. A user connects under the same lock, so it never joins a server that is being ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

CONTROL = "control.sock"
SERVER = "server.sock"
LOG = "server.log"
DUMP = "server.rdb"  # written only if a client sends SAVE

START_LIMIT_S = 10.0
RETRY_S = 0.005
TAIL_BYTES = 2000
DESCRIPTORS = 65536
PR_SET_PDEATHSIG = 1

STARTED = b"+"
FAILED = b"-"


def ping(path: str, limit_s: float) -> bool:
    """Return whether a server answers PONG at a socket; False if there is none, or it just died.

    :raises TimeoutError: a server is there, but does not answer within ``limit_s`` seconds.
    """
    deadline = time.monotonic() + limit_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(max(limit_s, RETRY_S))
            connection.connect(path)
            while True:
                connection.settimeout(max(deadline - time.monotonic(), RETRY_S))
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                answer = b""
                while not answer.endswith(b"\r\n"):
                    piece = connection.recv(4096)
                    if not piece:
                        return False
                    answer += piece
                if answer == b"+PONG\r\n":
                    return True
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"the server answers {answer.decode(errors='replace')!r}")
                time.sleep(RETRY_S)  # -LOADING, or -BUSY with a script, for an unknown time
        except (FileNotFoundError, ConnectionError):
            return False
        except BlockingIOError:  # Linux: the server's queue of new connections is full
            raise TimeoutError("the server accepts no connection") from None


def clear(folder_fd: int) -> None:
    """Remove our files from the folder, and no others: the user chose the path."""
    for name in (CONTROL, SERVER, LOG, DUMP):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder_fd)


def remove(path: str, folder_fd: int) -> None:
    """Clear the folder and remove it, unless it holds other files. Its lock must be held."""
    clear(folder_fd)
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(folder_fd)):
            os.rmdir(path)


def tail(folder_fd: int) -> str:
    """Return the end of the log for a message, at most TAIL_BYTES bytes."""
    try:
        fd = os.open(LOG, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder_fd)
    except OSError:
        return ""
    with open(fd, "rb") as log:
        log.seek(max(os.fstat(fd).st_size - TAIL_BYTES, 0))
        return log.read().decode(errors="replace").strip()


class Supervisor:
    """One server and its users, from start to end. The current directory is the folder."""

    def __init__(self, path: str, binary: str, folder_fd: int, first_user: socket.socket) -> None:
        self.path = path
        self.binary = binary
        self.users: dict[int, socket.socket] = {first_user.fileno(): first_user}
        self.full = False  # no descriptor left for one more user
        self.terminated = False
        self.server_pid = 0  # 0: not running
        self.server_status = 0
        self.folder_fd = folder_fd
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.setblocking(False)
        self.wake_fd, wake_write_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(wake_write_fd, False)
        signal.set_wakeup_fd(wake_write_fd, warn_on_full_buffer=False)
        # The starter may have blocked or ignored signals, and exec keeps both.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _on_terminate(self, *_: object) -> None:
        self.terminated = True

    def start(self) -> str:
        """Start the server and listen for users; return what went wrong, or ""."""
        self._launch()
        deadline = time.monotonic() + START_LIMIT_S
        try:
            while not ping(SERVER, deadline - time.monotonic()):
                if not self._server_runs():
                    return f"it ended with status {self.server_status}"
                if self.terminated:
                    return "its supervisor received SIGTERM"
                if time.monotonic() >= deadline:
                    return f"no answer in {START_LIMIT_S:g} s"
                self._wait([self.wake_fd], RETRY_S)
            self.listener.bind(CONTROL)
            self.listener.listen(socket.SOMAXCONN)
        except TimeoutError:
            return f"no answer in {START_LIMIT_S:g} s"
        except OSError as error:
            return str(error)
        return ""

    def run(self) -> None:
        """Serve until the last user is gone, the server died, or SIGTERM came; then clean up."""
        locked = False
        try:
            while self._server_runs() and not self.terminated:
                limit_s = None
                if not self.users:
                    locked = self._try_lock()
                    if locked:
                        self._accept()
                        if not self.users:
                            break
                        fcntl.flock(self.folder_fd, fcntl.LOCK_UN)
                        locked = False
                    else:  # a process is about to join, or died while joining: check again soon
                        limit_s = RETRY_S
                self._serve(limit_s)
        finally:
            self._end(locked)

    def stop_server(self) -> None:
        """Kill the server and wait until it is gone; it has nothing to save."""
        if self._server_runs():
            os.kill(self.server_pid, signal.SIGKILL)
            os.waitpid(self.server_pid, 0)
            self.server_pid = 0

    def _launch(self) -> None:
        prctl = _prctl()
        parent_pid = os.getpid()
        arguments = [self.binary]
        for name, value in (
            ("port", "0"),
            ("unixsocket", SERVER),  # relative: no limit of length, and nothing to quote
            ("unixsocketperm", "700"),
            ("save", ""),
            ("appendonly", "no"),
            ("daemonize", "no"),
            ("dir", "."),
            ("dbfilename", DUMP),
            ("logfile", ""),
            ("maxmemory-policy", "noeviction"),
        ):
            arguments += [f"--{name}", value]
        pid = os.fork()
        if pid:
            self.server_pid = pid
            return
        try:
            if prctl is not None:
                prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
            # If the supervisor died before prctl, the kernel does not send the signal.
            if os.getppid() == parent_pid:
                os.execv(self.binary, arguments)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(127)

    def _server_runs(self) -> bool:
        if self.server_pid:
            pid, status = os.waitpid(self.server_pid, os.WNOHANG)
            if pid:
                self.server_pid, self.server_status = 0, os.waitstatus_to_exitcode(status)
        return self.server_pid != 0

    def _wait(self, fds: list[int], limit_s: float | None) -> list[int]:
        """Wait for any descriptor, a signal, or the limit; return the ready descriptors."""
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if limit_s is None else limit_s * 1000)]
        if self.wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_fd, 4096)
        return ready

    def _serve(self, limit_s: float | None) -> None:
        """Wait for an event, and accept and remove users."""
        fds = [self.wake_fd, *self.users]
        if not self.full:
            fds.append(self.listener.fileno())
        for fd in self._wait(fds, limit_s):
            if fd == self.listener.fileno():
                self._accept()
            elif fd in self.users:
                self._on_readable(fd)

    def _accept(self) -> None:
        """Accept all connections. One that cannot be accepted now stays in the backlog."""
        self.full = False
        try:
            while True:
                user, _ = self.listener.accept()
                user.setblocking(False)
                self.users[user.fileno()] = user
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.full = True

    def _on_readable(self, fd: int) -> None:
        """Remove a user whose connection is readable: users send nothing, so it was closed."""
        try:
            gone = not self.users[fd].recv(4096)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            self.users.pop(fd).close()
            self.full = False

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self.folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _end(self, locked: bool) -> None:
        """End the server and remove the folder.

        Without the lock (the server died, or SIGTERM), other processes may act at the same time.
        While the control socket exists and we listen, no process takes the folder as abandoned, so
        the socket is removed last. A control socket that exists after that belongs to a successor,
        and so does everything else.
        """
        self.stop_server()
        for name in (SERVER, CONTROL):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.folder_fd)
        self.listener.close()
        for user in self.users.values():
            user.close()
        if not locked:
            fcntl.flock(self.folder_fd, fcntl.LOCK_EX)  # its holder never waits for us
        try:
            os.stat(CONTROL, dir_fd=self.folder_fd)
        except FileNotFoundError:
            remove(self.path, self.folder_fd)


def _prctl() -> Callable[..., object] | None:
    """Return the call with which the server is killed when its supervisor dies, on Linux.

    On other systems, the next process that starts a server kills the one left over.
    """
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            call: Callable[..., object] = ctypes.CDLL(None).prctl
            return call
    return None


def _raise_descriptor_limit() -> None:
    """Allow many descriptors if permitted: each user, and each client of the server, needs one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: list[str]) -> None:
    """Detach, start the server, report over USER_FD, and serve until the last user is gone."""
    path, binary, lock_fd, user_fd = arguments[0], arguments[1], *map(int, arguments[2:])
    if os.fork():
        os._exit(0)  # the starter waits for this process, so the supervisor is not its child
    for fd in (lock_fd, user_fd):
        os.set_inheritable(fd, False)
    os.fchdir(lock_fd)
    os.umask(0o077)
    _raise_descriptor_limit()
    starter = socket.socket(fileno=user_fd)
    supervisor = Supervisor(path, binary, lock_fd, starter)
    problem = supervisor.start()
    message = ""
    if problem:
        message = (
            f"could not start the embedded server {binary}: {problem}. Its log ends: "
            f"{tail(lock_fd)}"
        )
        supervisor.stop_server()
        remove(path, lock_fd)
    # This also unlocks for the starter, which has the same open file, and only closes it.
    fcntl.flock(lock_fd, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):  # the starter may be dead, and then is not a user
        starter.sendall(FAILED + message.encode() if problem else STARTED)
    if not problem:
        supervisor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
