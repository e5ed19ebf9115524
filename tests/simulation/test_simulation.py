"""The simulator: the shipped Lua and the shipped protocol under thousands of drawn faults."""

from __future__ import annotations

import os
import subprocess
import sys
from zlib import crc32

import pytest

from tests.simulation import mutants, planted
from tests.simulation.checker import OVERLAPS
from tests.simulation.many import run_many
from tests.simulation.regressions import REGRESSIONS
from tests.simulation.run import Result, free_residues, has_multi, has_silence, play
from tests.simulation.world import Server
from tests.support.servers import TIER

SEEDS = 5000 if TIER == "all" else 2000


def explain(result: Result) -> str:
    """Return the first violation of each failing seed, and how to replay it."""
    return "\n".join(
        f"python -m tests.simulation --seed {seed}\n    {violations[0]}"
        for seed, violations in result.failing
    )


def test_no_seed_finds_a_violation() -> None:
    """Thousands of seeds break no rule, and meet every kind of fault."""
    total = Result()
    for part in run_many(0, SEEDS, os.cpu_count() or 1):
        total.add(part)
    assert not total.failing, explain(total)
    assert not total.probed, total.probed[0]
    assert total.seeds == SEEDS
    assert min(total.faults.values()) > SEEDS / 50, total.faults
    assert set(total.faults) >= {
        *("cut", "slow", "flaky", "orphan", "pause", "crash", "interrupt", "stall", "restart"),
        *("flush", "oom", "read_only", "data_loss", "failover", "clock_forward", "clock_back"),
        *("crossing", "crossed", "torn", "fork", "silent"),
    }
    causes = set(total.attributed)  # of two holders
    assert {"failover", "data_loss", "clock_forward"} <= causes <= set(OVERLAPS), causes
    assert total.waited > SEEDS


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_seeds_that_have_found_a_bug(seed: int) -> None:
    """A seed that has found a bug does not find it any more."""
    result = play(seed, Server())
    assert not result.failing, (REGRESSIONS[seed], explain(result))


def test_free_residues() -> None:
    """A new kind of run finds residues that are those of no old seed, and sees what they draw."""
    free = free_residues(40)
    assert free
    assert not {seed % 40 for seed in REGRESSIONS} & set(free)
    for residue, kinds in free.items():
        assert ("has_multi" in kinds) is has_multi(residue)


def test_a_seed_is_the_same_run_each_time() -> None:
    """A seed gives the same events at the same times, whatever ran before on the same server."""
    server = Server()
    first = [play(seed, server, trace=True).trace for seed in range(30)]
    again = [play(seed, Server(), trace=True).trace for seed in reversed(range(30))]
    assert first == again[::-1]
    assert sum(map(len, first)) > 3000


@pytest.mark.parametrize("name", planted.PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    """Each planted bug of a script is found within 1,000 seeds."""
    found = planted.find(name, 1000)
    assert found is not None


@pytest.mark.full
@pytest.mark.parametrize("name", planted.DRIVER)
def test_a_planted_bug_of_a_driver_is_found(name: str) -> None:
    """Each planted bug of a driver breaks its rule within 1,000 seeds."""
    found = planted.find(name, 1000)
    assert found is not None


def test_each_mutant_of_the_protocol_can_run() -> None:
    """A mutant whose text is no Python would be no mutant."""
    for mutant in mutants.protocol_mutants():
        compile(mutant.changed, mutant.file, "exec")


@pytest.mark.parametrize(
    "mutant",
    [one for one in mutants.protocol_mutants() if one.what.startswith("the copy of")],
    ids=lambda one: one.what,
)
def test_a_forgotten_copy_is_found(mutant: mutants.Mutant) -> None:
    """Each line of the protocol that allows for a late copy of a request is needed."""
    if not mutants.reason(mutant):
        assert mutants.kill(mutant, 500, has_silence)


def test_a_failing_seed_shows_itself() -> None:
    """The trace of a failing seed shows its events and its violations in order."""
    server = Server()
    server.sources = planted.sources(planted.PLANTED["no owner check in release"])
    seed, _ = planted.find("no owner check in release") or (0, "")
    result = play(seed, server, trace=True)
    (failed,) = result.failing
    assert failed[0] == seed
    text = "\n".join(result.trace)
    assert "server release(" in text
    assert "ACQUIRE" in text
    assert "!!!" in text


def test_the_command_replays_a_seed() -> None:
    """``python -m tests.simulation --seed n`` prints its trace."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ACQUIRE" in done.stdout
    assert "0 failing" in done.stdout


@pytest.mark.full
def test_probes_notice_every_guard_of_the_scripts() -> None:
    """A probe notices the removal of each ``if`` and each write of the Lua, except where a reason
    says that it makes no difference."""
    scripts = [one for one in mutants.every() if one.file.endswith(".lua")]
    assert len(scripts) > 250
    unseen = [one for one in scripts if not mutants.probe(one)]
    assert [str(one) for one in unseen if not mutants.reason(one)] == []


@pytest.mark.full
def test_seeds_notice_steps_of_the_protocol() -> None:
    """A seed notices the removal of each of a quarter of the protocol's steps.

    ``python -m tests.simulation mutants`` tries all. The texts of the steps choose the quarter, so
    that a new step does not change the choice of the others.
    """
    every = [*mutants.protocol_mutants()]
    some = [one for one in every if crc32(one.what.encode()) % 4 == 0]
    some = [one for one in some if not mutants.reason(one)]
    assert len(some) > len(every) / 8
    survivors = [str(one) for one in some if not mutants.kill(one, 2000)]
    assert not survivors
