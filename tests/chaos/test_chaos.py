"""Chaos on real processes, a short run; ``make chaos`` makes longer ones."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from lualock.embedded import binaries
from tests.chaos import __main__ as program
from tests.chaos import round as chaos_round
from tests.chaos.round import Outcome, Plan, judge, play
from tests.support.servers import BINARIES

FIRST = next(iter(BINARIES))

ACTS = {"kills", "stops", "pauses", "flushes", "server stops", "restarts"}


@pytest.mark.full
def test_chaos_in_short() -> None:
    """Faults of processes and server break no rule."""
    outcome = play(Plan(FIRST, seconds=8, seed=1, processes=10))
    assert not outcome.violations, (outcome.folder, [str(each) for each in outcome.violations])
    assert set(outcome.acts) >= ACTS
    assert outcome.held > 200
    assert outcome.handed_over > 20
    assert not outcome.folder.exists()


@pytest.mark.full
@pytest.mark.parametrize("fault", ["delete", "overstay"])
def test_a_planted_fault_is_found(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program finds a bug that is planted in the workers, prints how to play the round again,
    and keeps the event logs."""
    options = f"--server {FIRST} --minutes 0.1 --seed 1 --processes 10 --fault {fault}"
    monkeypatch.setattr(sys, "argv", ["chaos", *options.split()])
    found = []

    def observed(plan: Plan) -> Outcome:
        found.append(play(plan))
        return found[0]

    monkeypatch.setattr(program, "play", observed)
    monkeypatch.setattr(chaos_round, "LEFT_S", 0.0)  # left keys are not the subject of this test
    status = program.main()
    try:
        output = capsys.readouterr().out
        assert status == 1
        assert "overlap" in {each.rule for each in found[0].violations}, output
        assert f"make chaos MINUTES=0.1 SERVER={FIRST} SEED=1" in output
        assert str(found[0].folder) in output
        assert "overlap" in {each.rule for each in judge(found[0].folder).violations}
    finally:
        shutil.rmtree(found[0].folder)


def test_each_server_has_its_share_in_every_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """``make chaos`` plays on each installed server, although `make test` uses the first one
    only."""
    plans: list[Plan] = []

    def planned(plan: Plan) -> Outcome:
        plans.append(plan)
        return Outcome(Path())

    monkeypatch.setattr(sys, "argv", ["chaos", "--minutes", "1", "--seed", "1"])
    monkeypatch.setattr(program, "play", planned)
    assert program.main() == 0
    servers = [binary.name for binary in binaries.every()]
    assert [(plan.server, plan.seconds) for plan in plans] == [
        (server, 60 / len(servers)) for server in servers
    ]
