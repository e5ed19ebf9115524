"""Run scripts without lualock's drivers, and check the proof of each reply."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from lualock._transport import codec
from lualock.scripts import Script


def proof_of(script: Script, parts: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the proof for one run of a script, and its keys and arguments with the proof."""
    if script.proof_at is not None:
        return parts[script.proof_at], tuple(parts)
    number = os.urandom(4).hex().encode()
    return number, (*parts, number)


def run(evaluate: Callable[..., Any], script: Script, *parts: Any) -> Any:
    """Run a script by ``evaluate(source, number of keys, *keys and arguments)``.

    :raises errors.CrossedReply: the reply has not this proof.
    """
    proof, words = proof_of(script, parts)
    return codec.strip_proof(evaluate(script.source.decode(), len(script.keys), *words), proof)
