"""The methods of ``JobAdapter`` that are made for both APIs."""

from __future__ import annotations

import inspect

import pytest

from lualock.jobs import JobAdapter

VERBS = "enqueue", "reserve", "confirm", "refuse", "cancel", "died"


@pytest.mark.parametrize("name", [*VERBS, *(f"{verb}_async" for verb in VERBS)])
def test_annotations(name: str) -> None:
    """A method has the annotations of its signature: tools of documentation read both."""
    method = getattr(JobAdapter, name)
    signature = inspect.signature(method)
    shown = {each.name: each.annotation for each in signature.parameters.values()}
    del shown["self"]
    assert inspect.get_annotations(method) == {**shown, "return": signature.return_annotation}
