"""Find the contract that judges a run of a script.

A family of scripts has a module with a class of what is read before and after (``read``), one of a
run (``Run``), and a function that yields how a run broke its header (``broken``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lualock._protocol import RunScript
from lualock.scripts import Script, every
from tests.simulation import contract, job_contract, multi_contract
from tests.simulation.store import Store


@dataclass(frozen=True)
class Contract:
    """How the scripts of one family are judged."""

    read: Callable[[Store, RunScript], Any]
    """Read what the call may use or change, as it is now."""

    run: Callable[..., Any]
    """Make a run from the call, the data before and after, the reply, the messages, the store."""

    broken: Callable[[Any], Iterator[str]]
    """Yield each way in which a run broke its contract."""

    owners: Callable[[RunScript, Any], Iterable[tuple[bytes, bytes]]] = lambda call, after: ()
    """Return the keys of the locks that were read, each with the token that has it."""

    def judge(
        self,
        call: RunScript,
        before: Any,
        after: Any,
        reply: Any,
        messages: list[tuple[bytes, int]],
        store: Store,
    ) -> Iterator[str]:
        """Yield each way in which a call broke its contract."""
        yield from self.broken(self.run(call, before, after, reply, messages, store))


JOBS = Contract(
    job_contract.Around.read, job_contract.JobRun, job_contract.broken, job_contract.owners
)
MULTI = Contract(
    multi_contract.read, multi_contract.MultiRun, multi_contract.broken, multi_contract.owners
)
FAMILIES = {
    "lock": Contract(contract.read, contract.Run, contract.broken, contract.owners),
    "multi": MULTI,
    "jobs": JOBS,
}
# Stop requests are made for jobs, and are judged with all keys around a lock.
_APART = {f"lock/{verb}": JOBS for verb in ("request_release", "release_requested", "withdraw")}
_OF = {path: _APART.get(path) or FAMILIES[path.partition("/")[0]] for path in every()}


def contract_of(script: Script) -> Contract:
    """Return the contract of a script."""
    return _OF[script.path]
