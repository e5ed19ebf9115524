"""The benchmark: it runs, it counts correctly, it names rivals that break, and targets can be
missed."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench import (
    client_cost,
    compare,
    contention,
    coroutines,
    crowd,
    fairness,
    hand_over,
    job_systems,
    jobs,
    many_locks,
    plots,
    promptness,
    races,
    recovery,
    renewals,
    report,
    rivals,
    server_cost,
    servers,
    setting,
    threads,
    uncontended,
    waiters,
    wake_ups,
)
from bench.__main__ import main
from bench.crowd import Crowd, Turn
from bench.races import Hold, double_holders
from bench.rivals import apart, roster
from bench.scenarios import SCENARIOS, SECONDS
from bench.server import Server as Where
from bench.setting import Broken, Setting
from bench.stats import quantile, ratio
from tests.support.servers import Server


@pytest.mark.parametrize(
    ("holds", "found"),
    [
        ([], 0),
        ([Hold("a", 0, 1), Hold("b", 1, 2)], 0),
        ([Hold("a", 0, 1), Hold("b", 0.9, 2)], 1),
        ([Hold("a", 0, 1), Hold("a", 0.9, 2)], 0),
        ([Hold("b", 0.9, 2), Hold("a", 0, 1)], 1),
        ([Hold("a", 0, 9), Hold("b", 1, 2), Hold("c", 3, 4)], 2),
        ([Hold("a", 0, 9), Hold("b", 1, 1)], 1),
        ([Hold("a", 0, 0), Hold("b", 0, 1)], 0),
    ],
)
def test_double_holders(holds: list[Hold], found: int) -> None:
    """A hold that begins while another worker is inside counts once."""
    assert double_holders(holds) == found


def test_the_holds_of_the_workers(tmp_path: Path) -> None:
    """A hold ends with the belief of its worker, or with its death."""
    (tmp_path / "1.log").write_text("in 1.0 3.0\nout 2.0 0\nin 4.0 5.0\nout 6.0 0\nin 7.0 8.0\n")
    (tmp_path / "2.log").write_text("in 1.0 inf\nout 2.5 1\n")
    (tmp_path / "3.log").write_text("")
    assert sorted(races.read(tmp_path), key=lambda h: (h.worker, h.start)) == [
        Hold("1", 1.0, 2.0),
        Hold("1", 4.0, 5.0),
        Hold("1", 7.0, 7.0),
        Hold("2", 1.0, 2.5, taken=True),
    ]


@pytest.mark.full
def test_the_races_find_the_known_faults(one_server: Server) -> None:
    """The race finds the fault of a rival without an owner check, and none of lualock."""
    rows = [races.race(one_server.url, kind, "expiry", 1.0) for kind in ("SetNxPx", "Lualock")]
    assert rows[0].double_holders > 0
    assert rows[0].taken_from_holder > 0
    assert rows[1].acquisitions > 0
    assert rows[1].double_holders == rows[1].taken_from_holder == rows[1].stuck == 0
    stuck = races.race(one_server.url, "SetNx", "crash", 1.5)
    assert stuck.stuck == (1 if stuck.crashes else 0)


def _met(found: setting.Targets) -> list[bool]:
    return [met for _, _, met in found]


def test_targets_can_be_missed() -> None:
    """Whether a target is met is computed from the run."""

    def free(times_ping: float, times_redis_py: float, times_setnx: float) -> list[bool]:
        times = {
            uncontended.PING: times_ping,
            rivals.REDIS_PY: times_redis_py,
            rivals.SETNX: times_setnx,
        }
        judged = [
            uncontended.Row(name, *uncontended.JUDGED, 1, 1, 1, 1, ratio)
            for name, ratio in times.items()
        ]
        other = uncontended.Row(rivals.REDIS_PY, "TCP", uncontended.AS_SCHEDULED, 1, 1, 1, 1, 9)
        return _met(uncontended.targets([*judged, other]))

    assert free(0.88, 1.81, 1.01) == [True, True, True]
    assert free(0.86, 1.79, 0.99) == [False, False, False]
    good = races.Row("lualock", "expiry", 10, 0, 0, 0, 0)
    bad = races.Row("lualock", "crash", 0, 1, 2, 1, 0)
    assert _met(races.targets([good])) == [True] * 4
    assert _met(races.targets([good, bad])) == [False] * 4

    def contended(rate: float, p99: float, kept: float, published: float) -> list[bool]:
        rest = (10, 1, 1, 1)
        rows = [
            contention.Row("lualock", 2, 100, *rest, 1, 1, 1, 1, 1),
            contention.Row("lualock", 32, 100, *rest, published, 1, 1, 1, kept),
            contention.Row("the best", 32, 100 / rate, *rest, 0, 1, 1 / rate, p99, 1),
            contention.Row("another", 32, 1, *rest, 0, 1, 1 / 100, 99, 1),
        ]
        return _met(contention.targets(rows))

    assert contended(2.6, 3.1, 0.81, 1.0) == [True] * 4
    assert contended(2.4, 2.9, 0.79, 1.1) == [False] * 4
    ten, many = waiters.Row(10, 0.01, 200, 99, 1), waiters.Row(10_000, 0.09, 200, 99, 1.49)
    assert _met(waiters.targets([ten, many])) == [True, True]
    slow = waiters.Row(10_000, 0.11, 200, 99, 1.51)
    assert _met(waiters.targets([ten, slow])) == [False, False]

    def tasks(one: float, thousand: float) -> list[bool]:
        rows = [
            coroutines.Row(rivals.REDIS_PY_AIO, n, 1, t) for n, t in ((1, one), (1000, thousand))
        ]
        return _met(coroutines.targets(rows))

    assert tasks(1.0, 8.1) == [True, True]
    assert tasks(0.9, 7.9) == [False, False]

    def prompt(turn_ms: float, timeout_ms: float) -> list[bool]:
        rows = [
            promptness.Row("", turn_ms, turn_ms, promptness.TURN_MAX_MS),
            promptness.Row("", timeout_ms, timeout_ms, promptness.TIMEOUT_MAX_MS),
        ]
        return _met(promptness.targets(rows))

    assert prompt(99, 49) == [True, True]
    assert prompt(101, -51) == [False, False]

    def systems(added_us: float) -> list[bool]:
        rows = [job_systems.Row(name, 9, 9, us, 1) for name, us in (("a", 9), ("b", added_us))]
        return _met(job_systems.targets(rows))

    assert systems(2000) == [True]
    assert systems(2001) == [False]

    def kept(core: float, lost: int) -> list[bool]:
        return _met(renewals.targets([renewals.Row("", 9, 1, core, 1, 1, lost)]))

    assert kept(0.09, 0) == [True, True]
    assert kept(0.11, 1) == [False, False]


@pytest.mark.parametrize("better", [True, False])
def test_the_other_targets_can_be_missed(better: bool) -> None:
    """A figure on the wrong side of its bar misses the target."""

    def of(good: float, bad: float) -> float:
        return good if better else bad

    redis_py = rivals.REDIS_PY
    found = [
        threads.targets([threads.Row(redis_py, 8, 1, 2), threads.Row(redis_py, 1, 1, of(1, 0.9))]),
        jobs.targets([jobs.Row(redis_py, 1, 1, 1, of(1.1, 0.9))]),
        hand_over.targets(
            [
                hand_over.Row(n, 1, 1, 1, 1, t)
                for n, t in (("lualock", 1), ("a", 2), ("b", of(1.1, 0.9)))
            ]
        ),
        fairness.targets([fairness.Row("lualock", of(0.9, 0.7), 1, 1, 1)]),
        recovery.targets([recovery.Row("lualock", of(99, 101), 1, 3, 3)]),
        many_locks.targets([many_locks.Row("lualock", 9, 1, of(1.9, 2.1), 1)]),
        client_cost.targets(
            [
                client_cost.Row("lualock", 100, 1, 1, None),
                client_cost.Row(redis_py, of(200, 199), 1, 1, None),
            ]
        ),
        server_cost.targets([server_cost.Row("lualock", 1, 1, of(1.9, 2.1))]),
        servers.targets(
            [servers.Row("a", redis_py, 1, 2), servers.Row("b", redis_py, 1, of(1.1, 0.9))]
        ),
    ]
    assert [_met(one) for one in found] == [[better]] * len(found)


def test_a_holder_that_is_not_always_replaced_misses_the_target() -> None:
    """A dead holder that is replaced only sometimes, or never, misses the target."""
    for row in (recovery.Row("lualock", 5, 5, 2, 3), recovery.Row("lualock", None, None, 0, 3)):
        assert _met(recovery.targets([row])) == [False]


def test_the_work_of_a_pair_is_counted() -> None:
    """The counter finds all Python functions, C functions and bytecodes of a pair."""

    def once() -> int:
        return abs(-1)

    bytecodes, calls, c_calls = client_cost.counted(once)
    assert (calls, c_calls) == (1, 1)
    assert 3 < bytecodes < 20


def test_ratios_and_quantiles() -> None:
    """A ratio is the median of the rounds' ratios, not the ratio of the medians."""
    assert ratio([10, 20, 300], [10, 10, 100]) == 2
    assert ratio([1], [0]) == float("inf")
    assert quantile(range(100), 0.99) == 99
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([7], 0.999) == 7


def test_jains_index() -> None:
    """The index is 1 if all shares are equal, and 1/n if one worker has all."""
    assert fairness.jain([5, 5, 5, 5]) == 1
    assert fairness.jain([9, 0, 0, 0]) == 0.25


def test_the_figures_of_a_crowd() -> None:
    """A second acquisition by one worker is no change of holder; a worker that still waits has a
    waiting time."""
    turns = [Turn(0, 0, 1, 2), Turn(0, 2, 2.5, 3), Turn(1, 0, 4, 5), Turn(0, 5, 6, 7)]
    seen = Crowd(3, 10.0, turns, [9.0], Counter())
    assert [(before.acquired, after.acquired) for before, after in seen.hand_overs()] == [
        (2.5, 4),
        (4, 6),
    ]
    assert seen.waits() == [4, 1, 9]
    assert seen.shares() == [3, 1, 0]


@pytest.fixture
def tiny(one_server: Server) -> Setting:
    """Return a setting on a real server, with the rivals that need only redis-py."""
    process = one_server.process
    assert process is not None
    where = Where(one_server.tcp_url, one_server.url, process.pid, "a test's")
    return Setting(where, True, [rivals.LUALOCK, rivals.PLAIN], [rivals.AIO])


@pytest.mark.parametrize("name", [rivals.LUALOCK, "redis-fifo-lock", rivals.PLAIN])
def test_a_crowd_has_one_holder_at_a_time(tiny: Setting, name: str) -> None:
    """In a crowd of real processes, of threads and of asyncio, each hold begins after the previous
    one."""
    if name == "redis-fifo-lock" and name in apart.refused():
        pytest.skip("redis-fifo-lock is not installed apart: make .venv/installed-for-bench")
    seen = crowd.gather(tiny, name, 3, hold_s=0.001)
    assert sum(1 for _ in seen.hand_overs()) > 0
    for before, after in zip(seen.turns, seen.turns[1:], strict=False):
        assert before.released <= after.acquired
    assert all(turn.released - turn.acquired >= 0.001 for turn in seen.turns)
    assert sum(seen.commands.values()) > 0


def test_a_rival_that_breaks_is_reported_and_stops_nothing(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rival that cannot run, or that pip refused, is reported, and the others are measured."""
    broken = {"no module": "no_such_module:X", "no class": "plain:NoSuchRival"}
    monkeypatch.setattr(rivals, "SYNC", rivals.SYNC | broken)
    monkeypatch.setattr(apart, "refused", lambda: {"redlock-ng": "pip said no"})
    tiny.sync += broken
    found = {one.rival: one.error for one in _called(tiny)}
    # The forked processes have their own registry, without both names.
    assert set(found) == {"no module", "no class", "redlock-ng"}
    assert found["redlock-ng"] == "pip said no"
    assert tiny.sync == [rivals.LUALOCK, rivals.PLAIN]
    assert tiny.tasks == [rivals.AIO]
    text = report.Report(tiny.broken).as_markdown()
    assert "| no module | a single pair |" in text


def _called(tiny: Setting) -> list[Broken]:
    roster.call(tiny)
    return tiny.broken


def test_a_way_that_breaks_in_a_round_is_dropped(
    tiny: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way that raises or hangs is dropped; the others are measured in all rounds."""
    monkeypatch.setattr(setting, "ROUND_LIMIT_S", 0.2)
    calls: Counter[str] = Counter()

    def good() -> int:
        calls["good"] += 1
        return calls["good"]

    def raises() -> int:
        calls["raises"] += 1
        raise ValueError("of | no\nuse")

    def hangs() -> int:
        calls["hangs"] += 1
        time.sleep(60)
        return 0

    found = tiny.rounds("here", {"good": good, "raises": raises, "hangs": hangs}, least=3)
    assert found == {"good": [1, 2, 3]}
    assert calls == {"good": 3, "raises": 1, "hangs": 1}
    assert sorted((one.rival, one.error) for one in tiny.broken) == [
        ("hangs", "TimeoutError: it was not done after 0 s"),
        ("raises", "ValueError: of | no use"),
    ]


def test_the_report_names_no_folder_of_the_machine(tiny: Setting) -> None:
    """An error keeps the name of a file, without its folders."""
    for error in ("no '/home/me/of.sock'", "unix:///tmp/of.sock of SETNX/GETSET"):
        tiny.breaks("a rival", error, OSError(error))
    assert [one.error for one in tiny.broken] == [
        "OSError: no 'of.sock'",
        "OSError: unix://of.sock of SETNX/GETSET",
    ]


def test_an_error_of_lualock_ends_the_benchmark(tiny: Setting) -> None:
    """An error of lualock ends the benchmark."""
    with pytest.raises(RuntimeError, match="lualock broke in here"):
        tiny.rounds("here", {"lualock": lambda: 1 / 0})


def test_a_slow_rival_has_fewer_rounds(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways have the same time and the same first rounds; a slow one has fewer rounds, which the
    report shows."""
    now = 0.0
    turns: list[str] = []

    def takes(name: str, took_s: float) -> None:
        nonlocal now
        now += took_s
        turns.append(name)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    ways = {
        name: functools.partial(takes, name, took_s)
        for name, took_s in (("fast", 0.01), ("slow", 1.0), ("slower", 9.0))
    }
    tiny.budget_s = 18.0
    found = {name: len(many) for name, many in tiny.rounds("here", ways, least=2).items()}
    assert found == {"fast": setting.MOST, "slow": 6, "slower": 2}
    assert Counter(turns[:6]) == dict.fromkeys(ways, 2)
    assert sorted(tiny.counted) == [2, 6, setting.MOST]
    assert len(tiny.rounds("here", ways, share=0.0)["fast"]) == setting.QUICK_LEAST
    tiny.quick = False
    assert len(tiny.rounds("here", ways, share=0.0)["slower"]) == setting.LEAST >= 3


def test_a_crowd_whose_rival_raises_says_so(tiny: Setting) -> None:
    """The error of a process of a crowd is raised here."""
    with pytest.raises(RuntimeError, match="KeyError"):
        crowd.gather(tiny, "nobody", 2)


def test_a_rival_installed_apart_leaves_its_name_to_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two packages with one import name each rival gets its own, in any order."""
    monkeypatch.setattr(apart, "FOLDER", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "usual"))
    for place, what in (("usual", "usual"), ("theirs", "apart")):
        package = tmp_path / place / "of_one_name"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("from of_one_name.inner import WHAT")
        (package / "inner.py").write_text(f"WHAT = {what!r}")
    import of_one_name  # type: ignore[import-not-found]  # made above

    assert apart.load("theirs", "of_one_name").WHAT == "apart"
    assert sys.modules["of_one_name"] is of_one_name
    assert of_one_name.WHAT == sys.modules["of_one_name.inner"].WHAT == "usual"


def test_pips_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused rival is reported with pip's message; without an answer of pip, with the
    command."""
    monkeypatch.setattr(apart, "ANSWERS", tmp_path / "answers.json")
    assert "python -m bench.rivals.apart" in apart.refused()["redlock-ng"]
    apart.ANSWERS.write_text(json.dumps({"redlock-ng": "conflicting", "redis-lock-py": ""}))
    assert apart.refused() == {"redlock-ng": "conflicting"}


def _kept(per_s: float, met: bool) -> dict[str, Any]:
    row = contention.Row("lualock", 32, per_s, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    return report.Report(
        [], {"cores": "2"}, {"contention": [row]}, [("fast", per_s, met)]
    ).as_json()


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed figure is shown with its ratio, an unchanged one is left out, a changed target is
    named."""
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, kept in zip(paths, (_kept(100, True), _kept(50, False)), strict=True):
        path.write_text(json.dumps(kept))
    assert main(["compare", *map(str, paths)]) == 0
    output = capsys.readouterr().out
    assert "| lualock, 32 processes | per_s | 100 | 50 | 0.50 |" in output
    assert "wait_p99_ms" not in output
    assert "| fast | 100 (met) | 50 (missed) |" in output
    assert "The same in both." in compare.compared(_kept(100, True), _kept(101, True))


def test_compare_with_another_version() -> None:
    """Scenarios and targets that only one report has are named."""
    before, after = _kept(100, True), _kept(100, True)
    before["results"]["gone"] = [{"rival": "a", "of_old": 1}]
    after["results"]["came"] = [{"rival": "a", "of_new": 1}]
    row = after["results"]["contention"][0]
    row["per_s"], row["of_new"] = None, 7
    after["targets"] = [{"claim": "another", "figure": None, "met": False}]
    output = compare.compared(before, after)
    assert "Only before: gone." in output
    assert "Only after: came." in output
    assert "| lualock, 32 processes | per_s | 100 | - |  |" in output
    assert "of_new" not in output
    assert "| fast | 100 (met) | - |" in output
    assert "| another | - | - (missed) |" in output


@pytest.mark.parametrize("text", [None, "no JSON", "[]", "{}"])
def test_an_invalid_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    """An invalid report is reported by its name, without a traceback, with an exit status of its
    own."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(_kept(1, True)))
    if text is not None:
        bad.write_text(text)
    assert main(["compare", str(good), str(bad)]) == 2
    assert str(bad) in capsys.readouterr().err
    assert main(["plot", str(bad), str(tmp_path)]) == 2
    assert main(["plot", str(good), str(tmp_path), "no_such"]) == 2
    assert "no_such" in capsys.readouterr().err
    assert main(["compare", str(good)]) == 2
    assert "compare A.json B.json" in capsys.readouterr().err


def test_infinite_figures_are_left_out_of_the_json() -> None:
    """Infinite figures, which JSON lacks, are left out."""
    row = hand_over.Row("a", 1, 1, 1, 1, float("inf"))
    kept = report.Report([], {}, {"hand_over": [row]}, [("a claim", float("inf"), False)]).as_json()
    kept = json.loads(json.dumps(kept, allow_nan=False))
    assert kept["results"]["hand_over"][0]["times_lualock"] is None
    assert kept["targets"][0]["figure"] is None


def test_a_claim_about_a_rival_that_broke_is_missed() -> None:
    """A target about a rival that broke is missed."""
    made = report.Report([])
    made.add("jobs", [jobs.Row("lualock, locks.job", 1, 1, 1, 1)], 1.0, 1.0, [])
    assert _met(made.targets) == [False]


def test_colours() -> None:
    """A rival has one colour in all its forms, and lualock has its own."""
    assert plots.colour("redis-py Lock") == plots.colour("redis-py asyncio Lock")
    assert plots.colour("python-redis-lock") != plots.colour("redis-lock-py")
    others = [name for name in rivals.SYNC | rivals.TASKS if not name.startswith("lualock")]
    assert plots.OURS not in {plots.colour(name) for name in others}
    assert plots.colour("lualock.aio") == plots.OURS


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the whole command small."""
    few = {
        name: rivals.SYNC[name]
        for name in (
            rivals.LUALOCK,
            rivals.RENEWED,
            rivals.SETNX,
            rivals.PLAIN,
            rivals.REDIS_PY,
            rivals.PYTHON_REDIS_LOCK,
        )
    }
    monkeypatch.setattr(rivals, "SYNC", few)
    monkeypatch.setattr(
        rivals, "TASKS", {n: rivals.TASKS[n] for n in (rivals.AIO, rivals.REDIS_PY_AIO)}
    )
    tiny: dict[Any, dict[str, Any]] = {
        uncontended: {"PAIRS": 20},
        threads: {"RUN_S": 0.05, "QUICK_THREADS": (2,)},
        coroutines: {"QUICK_RUN_S": 0.02, "QUICK_TASKS": (1, 5)},
        job_systems: {"QUICK_ROUNDS": 1, "QUICK_JOBS": 20, "SYSTEMS": ("huey",)},
        contention: {"QUICK_PROCESSES": (2, 3)},
        hand_over: {"PROCESSES": 2},
        fairness: {"PROCESSES": 2},
        wake_ups: {"QUICK_SHAPES": ((2, 2),), "QUICK_HOPS": 40},
        promptness: {"QUICK_DEAD": 2, "TIMEOUT_S": 0.05},
        waiters: {
            "QUICK_WAITERS": (2, 5),
            "SETTLE_S": 0.1,
            "QUICK_IDLE_S": 0.1,
            "SERVED": 10,
        },
        many_locks: {"QUICK_LOCKS": 500},
        renewals: {"QUICK_LEASES": 20, "QUICK_TTL_S": 0.6},
        client_cost: {"COUNTED": 2, "TRACED": 12},
        server_cost: {"QUICK_PAIRS": 50},
        races: {"QUICK_RUN_S": 0.2, "QUICK_RIVALS": ("Lualock",)},
    }
    for scenario, changes in tiny.items():
        for name, value in changes.items():
            monkeypatch.setattr(scenario, name, value)
    monkeypatch.setattr(crowd, "WARM_UP_S", 0.1)
    monkeypatch.setattr(crowd, "QUICK_RUN_S", 0.2)
    for name in SECONDS:
        monkeypatch.setitem(SECONDS, name, (1.0, 0.01))


@pytest.mark.full
@pytest.mark.usefixtures("small")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command runs, prints a table for each scenario, and writes JSON, Markdown and
    plots."""
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "report.json").read_text())
    assert set(kept["results"]) == set(SCENARIOS) == set(plots.PLOTS) == set(SECONDS)
    assert [one["scenario"] for one in kept["spent"]] == list(SCENARIOS)
    assert all(kept["results"].values())
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "report.md").read_text() + "\n"
    assert "redis-py Lock" in printed
    for name in SCENARIOS:
        assert f"## {name}: " in printed
        assert (tmp_path / f"{name}.svg").read_text().endswith("</svg>\n")
    assert main(["plot", str(tmp_path / "report.json"), str(tmp_path / "two"), "jobs"]) == 0
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["jobs.svg"]


def test_the_help_and_an_unknown_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """The help and the error of an unknown scenario name all scenarios."""
    for arguments, status in ((["--help"], 0), (["jobs", "no_such"], 2)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == status
        output = " ".join("".join(capsys.readouterr()).split())
        assert ", ".join(SCENARIOS) in output
        assert "[]" not in output


@pytest.mark.usefixtures("small")
def test_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard fails exactly if a ratio that must hold does not."""
    for met, status in ((True, 0), (False, 1)):
        monkeypatch.setattr(jobs, "targets", lambda _, met=met: [("a claim", 1.0, met)])
        assert main(["jobs", "--quick", "--guard", "--out", str(tmp_path)]) == status
        assert main(["jobs", "--quick", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(jobs, "targets", lambda _: [])
    assert (
        main(["jobs", "--quick", "--guard", "--out", str(tmp_path)]) == 1
    )  # no ratio was measured
