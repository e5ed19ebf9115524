"""The private folder of the embedded server: where it is, that it is ours, and its lock.

Whoever starts or ends the server holds the lock, a ``flock`` on the folder itself. So there is no
lock file to leave behind, and the folder can be removed under its own lock: whoever waited for the
lock sees that the path no longer leads to what it locked, and begins again.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time

from lualock.embedded.supervisor import CONTROL
from lualock.errors import EmbeddedUnavailable, InvalidArgument

# A unix socket's path has 104 bytes on macOS and 108 on Linux, with the closing NUL.
SOCKET_PATH_LIMIT = 103
LOCK_RETRY_S = 0.005


def choose() -> str:
    """The folder's absolute path: LUALOCK_EMBEDDED_DIR, else one for each user in /tmp.

    /tmp comes before TMPDIR, which differs between a login, a cron job and a service of one user:
    two folders would mean two servers, and locks that do not exclude each other.

    Raises InvalidArgument when LUALOCK_EMBEDDED_DIR cannot be used, EmbeddedUnavailable when
    there is no folder for temporary files.
    """
    chosen = os.environ.get("LUALOCK_EMBEDDED_DIR")
    if chosen:
        if not os.path.isabs(chosen):
            raise InvalidArgument(
                f"LUALOCK_EMBEDDED_DIR is {chosen!r}: an absolute path is needed, so that every "
                "process means the same folder"
            )
        path = os.path.normpath(chosen)
        if _socket_path_bytes(path) > SOCKET_PATH_LIMIT:
            raise InvalidArgument(
                f"LUALOCK_EMBEDDED_DIR is too long by {_socket_path_bytes(path)} to "
                f"{SOCKET_PATH_LIMIT} bytes: the path of a unix socket in it would not fit"
            )
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"LUALOCK_EMBEDDED_DIR is {chosen!r}: its name is not UTF-8, and no URL can say it"
            ) from None
        return path
    for parent in ("/tmp", tempfile.gettempdir()):
        path = os.path.join(parent, f"lualock-{os.geteuid()}")
        if (
            os.path.isdir(path) or (os.path.isdir(parent) and os.access(parent, os.W_OK))
        ) and _socket_path_bytes(path) <= SOCKET_PATH_LIMIT:
            return path
    raise EmbeddedUnavailable(
        "no folder for the embedded server: /tmp cannot be written, and the temporary folder of "
        "this process is too long for a unix socket; set LUALOCK_EMBEDDED_DIR to a short path"
    )


def lock(path: str, deadline: float) -> int:
    """Make the folder if need be, check that it is private, and lock it.

    ``deadline`` is in seconds of ``time.monotonic()``. Returns a descriptor of the folder, which
    is the lock; ``unlock`` it. Raises EmbeddedUnavailable when the folder is not private to this
    user, cannot be made, or stays locked until the deadline.
    """
    while True:
        fd = _open(path)
        try:
            if fd is not None and _locked(fd, deadline) and _leads_to(path, fd):
                held, fd = fd, None
                return held
        finally:
            if fd is not None:
                os.close(fd)
        if time.monotonic() >= deadline:
            raise EmbeddedUnavailable(
                f"the folder {path} of the embedded server stayed locked: a process that starts "
                "or ends the server seems to be stopped"
            )


def unlock(fd: int) -> None:
    """Release the lock, also when a forked child has inherited the descriptor."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _socket_path_bytes(path: str) -> int:
    return len(os.fsencode(os.path.join(path, CONTROL)))


def _open(path: str) -> int | None:
    """A descriptor of the folder, made if need be; None when somebody has just removed it."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise EmbeddedUnavailable(
            f"the folder {path} of the embedded server cannot be made: {error.strerror}"
        ) from error
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refusal(path, "is a symlink or no folder, or is closed to this user") from error
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise _refusal(path, f"belongs to the user with id {found.st_uid}")
        if stat.S_IMODE(found.st_mode) != 0o700:
            raise _refusal(path, f"has the mode {stat.S_IMODE(found.st_mode):04o}, not 0700")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refusal(path: str, what: str) -> EmbeddedUnavailable:
    return EmbeddedUnavailable(
        f"{path} {what}: the embedded server works only in a folder that is private to this user. "
        "Remove it, or set LUALOCK_EMBEDDED_DIR to another path"
    )


def _locked(fd: int, deadline: float) -> bool:
    """Lock the folder; False when the deadline passes first."""
    while not _try_lock(fd):
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOCK_RETRY_S)  # flock knows no time limit, so there is nothing to wait on
    return True


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EmbeddedUnavailable(
            f"the folder of the embedded server cannot be locked: {error.strerror}"
        ) from error
    return True


def _leads_to(path: str, fd: int) -> bool:
    """Whether the path still leads to the folder that was opened, not to a successor of it."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
