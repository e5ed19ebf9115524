"""The private folder of the embedded server: its path, the check that it is private, its lock.

A process that starts or ends the server holds the lock, a ``flock`` on the folder itself. So there
is no lock file to leave behind, and the folder can be removed under its own lock. A process that
waited for the lock then sees that the path leads to another folder, and begins again.
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
    """Return the folder's absolute path: LUALOCK_EMBEDDED_DIR, or one for each user in /tmp.

    /tmp comes before TMPDIR, which differs between a login, a cron job and a service of one user.
    Two folders mean two servers, whose locks do not exclude each other.

    :raises InvalidArgument: LUALOCK_EMBEDDED_DIR is not valid.
    :raises EmbeddedUnavailable: there is no folder for temporary files.
    """
    chosen = os.environ.get("LUALOCK_EMBEDDED_DIR")
    if chosen:
        if not os.path.isabs(chosen):
            raise InvalidArgument(
                f"could not use LUALOCK_EMBEDDED_DIR={chosen!r}: it is not an absolute path, so "
                "processes may disagree about the folder. Set it to an absolute path"
            )
        path = os.path.normpath(chosen)
        if _socket_path_bytes(path) > SOCKET_PATH_LIMIT:
            raise InvalidArgument(
                "could not use LUALOCK_EMBEDDED_DIR: it is too long for a unix socket in it "
                f"({_socket_path_bytes(path)} bytes, {SOCKET_PATH_LIMIT} allowed). Set it to a "
                "shorter path"
            )
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"could not use LUALOCK_EMBEDDED_DIR={chosen!r}: it is not UTF-8, and a URL cannot "
                "contain it. Set it to another path"
            ) from None
        return path
    for parent in ("/tmp", tempfile.gettempdir()):
        path = os.path.join(parent, f"lualock-{os.geteuid()}")
        if (
            os.path.isdir(path) or (os.path.isdir(parent) and os.access(parent, os.W_OK))
        ) and _socket_path_bytes(path) <= SOCKET_PATH_LIMIT:
            return path
    raise EmbeddedUnavailable(
        "could not start the embedded server: there is no folder for it (/tmp is not writable, and "
        "the temporary folder of this process is too long for a unix socket). Set "
        "LUALOCK_EMBEDDED_DIR to a short path"
    )


def lock(path: str, deadline: float) -> int:
    """Create the folder if needed, check that it is private, and lock it.

    ``deadline`` is in seconds of ``time.monotonic()``. The result is a descriptor of the folder,
    which is the lock; ``unlock`` it.

    :raises EmbeddedUnavailable: the folder is not private to this user, cannot be created, or stays
        locked until the deadline.
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
                f"could not start the embedded server: its folder {path} stayed locked. A process "
                "that starts or ends the server may be suspended: continue or kill it"
            )


def unlock(fd: int) -> None:
    """Release the lock, even if a forked child has inherited the descriptor."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _socket_path_bytes(path: str) -> int:
    return len(os.fsencode(os.path.join(path, CONTROL)))


def _open(path: str) -> int | None:
    """Open the folder, created if needed; return None if another process just removed it."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise EmbeddedUnavailable(
            f"could not start the embedded server: its folder {path} cannot be created "
            f"({error.strerror}). Set LUALOCK_EMBEDDED_DIR to another path"
        ) from error
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refusal(path, "is a symlink or not a folder, or is closed to this user") from error
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


def _refusal(path: str, reason: str) -> EmbeddedUnavailable:
    return EmbeddedUnavailable(
        f"could not start the embedded server: its folder {path} {reason}, and must be private to "
        "this user. Remove it, or set LUALOCK_EMBEDDED_DIR to another path"
    )


def _locked(fd: int, deadline: float) -> bool:
    """Lock the folder; return False if the deadline passes first."""
    while not _try_lock(fd):
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOCK_RETRY_S)  # flock has no time limit
    return True


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EmbeddedUnavailable(
            f"could not start the embedded server: its folder cannot be locked ({error.strerror}). "
            "Set LUALOCK_EMBEDDED_DIR to a folder on another file system"
        ) from error
    return True


def _leads_to(path: str, fd: int) -> bool:
    """Return whether the path still leads to the opened folder, and not to a later one."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
