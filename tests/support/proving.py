"""Run scripts without lualock's drivers, and check the proof of each reply."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lualock._transport import codec
from lualock.scripts import Script


def proof_of(script: Script, parts: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the proof for one run of a script, and its keys and arguments with the proof."""
    if script.proof_at is not None:
        return parts[script.proof_at], tuple(parts)
    number = os.urandom(4).hex().encode()
    return number, (*parts, number)


class Raw:
    """Run the scripts of one server directly.

    :param scripts: by the names that calls use.
    :param keys: the key for each label in the scripts' ``KEYS``.
    """

    def __init__(
        self, client: Any, scripts: Mapping[str, Script], keys: Mapping[str, bytes]
    ) -> None:
        self.client, self._scripts, self._keys = client, scripts, keys

    def __call__(self, verb: str, *args: object) -> Any:
        script = self._scripts[verb]
        keys = [self._keys[label] for label in script.keys]
        return run(self.client.eval, script, *keys, *args)


def run(evaluate: Callable[..., Any], script: Script, *parts: Any) -> Any:
    """Run a script by ``evaluate(source, number of keys, *keys and arguments)``.

    :raises errors.CrossedReply: the reply has not this proof.
    """
    proof, words = proof_of(script, parts)
    return codec.strip_proof(evaluate(script.source.decode(), len(script.keys), *words), proof)
