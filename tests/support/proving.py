"""Scripts run by themselves: what they answer, behind the proof of which request that is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from lualock._transport import codec
from lualock.scripts import Script


def proof_of(script: Script, parts: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """The proof for one sending of a script, and its keys and arguments with that."""
    if script.proof_at is not None:
        return parts[script.proof_at], tuple(parts)
    number = os.urandom(4).hex().encode()
    return number, (*parts, number)


def run(evaluate: Callable[..., Any], script: Script, *parts: Any) -> Any:
    """Run a script by ``evaluate(source, number of keys, *keys and arguments)``.

    :raises errors.CrossedReply: the reply does not prove itself.
    """
    proof, words = proof_of(script, parts)
    return codec.strip_proof(evaluate(script.source.decode(), len(script.keys), *words), proof)
