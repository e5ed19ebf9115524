"""The scripts in the Lua of other servers: Dragonfly has 5.4, where whole numbers are a type."""

from __future__ import annotations

from typing import Any

import pytest
from lupa import lua53, lua54  # type: ignore[import-untyped]  # it has no type hints

from tests.simulation import store
from tests.simulation.probes import Bench


@pytest.mark.parametrize("version", [lua53, lua54], ids=["5.3", "5.4"])
@pytest.mark.parametrize("form", ["%.0f", "%.17g", "%.16e"])
def test_every_contract_holds(version: Any, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each script keeps its contract there, however the server writes the score of a place."""
    monkeypatch.setattr(store, "_score", lambda value: (form % value).encode())
    bench = Bench(version=version)
    assert [text for number in range(1500) for text in bench.probe(number)] == []
