"""A server's data in memory: only the commands that the scripts use, with the caller's clock.

To add a command, write a method with ``@_command``. A missing command or option raises
:class:`NotBuilt`. ``tests/transport/test_conformance.py`` compares the answers with real servers.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

Value = Any  # bytes, or a SortedSet
Reply = Any  # bytes, int, OK, None, or a list of these


class Refused(Exception):
    """An error reply of the server. The text begins with its code word."""


class NotBuilt(BaseException):
    """A script uses a command or option that this store lacks.

    It is not an ``Exception``, so that no code hides it.
    """


OK = type("Status", (), {"__repr__": lambda self: "OK"})()
"""The status reply that SET gives."""

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
OUT_OF_MEMORY = "OOM command not allowed when used memory > 'maxmemory'."
FORBIDDEN = "NOPERM this user has no permissions to access the channel"
READ_ONLY = "READONLY You can't write against a read only replica."


class SortedSet:
    """Members with scores, in order."""

    __slots__ = ("order", "scores")

    def __init__(self) -> None:
        self.scores: dict[bytes, float] = {}
        self.order: list[tuple[float, bytes]] = []

    def add(self, member: bytes, score: float) -> None:
        self.remove(member)
        self.scores[member] = score
        insort(self.order, (score, member))

    def remove(self, member: bytes) -> bool:
        score = self.scores.pop(member, None)
        if score is None:
            return False
        del self.order[bisect_left(self.order, (score, member))]
        return True

    def copy(self) -> SortedSet:
        duplicate = SortedSet()
        duplicate.scores, duplicate.order = dict(self.scores), list(self.order)
        return duplicate


@dataclass(frozen=True, slots=True)
class _Command:
    run: Callable[..., Reply]
    writes: bool
    grows: bool  # whether a server without memory refuses the command


COMMANDS: dict[bytes, _Command] = {}


def _command(
    name: str, *, writes: bool = False, grows: bool = False
) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    def register(run: Callable[..., Reply]) -> Callable[..., Reply]:
        COMMANDS[name.encode()] = _Command(run, writes, grows)
        return run

    return register


def _text(word: bytes | float) -> bytes:
    """Return an argument as Redis gets it from Lua."""
    if isinstance(word, bytes):
        return word
    return b"%d" % word if isinstance(word, int) else b"%.17g" % word


def _score(value: float) -> bytes:
    return b"%.17g" % value


class Store:
    """The keys of one server. ``now_us`` is its wall clock, which the caller moves."""

    def __init__(self) -> None:
        self.now_us = 0
        self.data: dict[bytes, Value] = {}
        self.ends: dict[bytes, int] = {}  # ms since 1970
        self.oom = self.read_only = self.silent = False
        self.wrote = False  # whether the running script has written
        self.publish: Callable[[bytes, bytes], int] = lambda channel, message: 0
        self.numsub: Callable[[bytes], int] = lambda channel: 0
        self.lost: Callable[[bytes, Value, int | None], None] = lambda key, value, end_ms: None
        """Called for a key that is deleted, or that expired at ``end_ms``."""

    def reset(self) -> None:
        """Delete all data."""
        self.data.clear()
        self.ends.clear()
        self.oom = self.read_only = self.silent = False

    def snapshot(self) -> tuple[dict[bytes, Value], dict[bytes, int]]:
        """Return a copy of the data."""
        kept = {
            key: value.copy() if isinstance(value, SortedSet) else value
            for key, value in self.data.items()
        }
        return kept, dict(self.ends)

    def restore(self, kept: tuple[dict[bytes, Value], dict[bytes, int]]) -> None:
        """Replace the data by a snapshot, which must not be used again."""
        self.data, self.ends = kept

    def call(self, *words: bytes | int | float) -> Reply:
        """Run one command, as ``redis.call`` does."""
        command = COMMANDS.get(words[0])  # type: ignore[arg-type]  # a name is never a number
        if command is None:
            raise NotBuilt(f"the simulated server has no command {words[0]!r}")
        # As in the real server, only commands before the first write of a script can be refused.
        if command.writes:
            if self.read_only:
                raise Refused(READ_ONLY)
            if command.grows and self.oom and not self.wrote:
                raise Refused(OUT_OF_MEMORY)
            self.wrote = True
        return command.run(self, *map(_text, words[1:]))

    def expire(self) -> None:
        """Delete all keys that have expired."""
        for key in list(self.ends):
            self.find(key)

    def find(self, key: bytes) -> Value:
        """Return the value at a key; ``None`` if the key is missing or has expired."""
        end_ms = self.ends.get(key)
        if end_ms is not None and self.now_us // 1000 > end_ms:
            del self.ends[key]
            self.lost(key, self.data.pop(key), end_ms)
            return None
        return self.data.get(key)

    def _string(self, key: bytes) -> bytes | None:
        value = self.find(key)
        if value is not None and type(value) is not bytes:
            raise Refused(WRONG_TYPE)
        return value

    def _set(self, key: bytes) -> SortedSet | None:
        value = self.find(key)
        if value is not None and type(value) is not SortedSet:
            raise Refused(WRONG_TYPE)
        return value

    def delete(self, key: bytes) -> None:
        """Delete a key."""
        self.ends.pop(key, None)
        self.lost(key, self.data.pop(key), None)

    @_command("GET")
    def _get(self, key: bytes) -> Reply:
        return self._string(key)

    @_command("SET", writes=True, grows=True)
    def _set_string(self, key: bytes, value: bytes, *options: bytes) -> Reply:
        end_ms = None
        at = 0
        while at < len(options):
            if options[at] != b"PX":
                _unknown("SET", options)
            ttl_ms = _integer(options[at + 1])
            if ttl_ms <= 0:
                raise Refused("ERR invalid expire time in 'set' command")
            end_ms = self.now_us // 1000 + ttl_ms
            at += 2
        self.find(key)  # a key that has expired is reported
        self.data[key] = value
        if end_ms is None:
            self.ends.pop(key, None)
        else:
            self.ends[key] = end_ms
        return OK

    @_command("SETRANGE", writes=True, grows=True)
    def _setrange(self, key: bytes, start: bytes, part: bytes) -> Reply:
        value, offset = self._string(key) or b"", _integer(start)
        if part:
            value = value.ljust(offset, b"\0")
            self.data[key] = value = value[:offset] + part + value[offset + len(part) :]
        return len(value)

    @_command("GETRANGE")
    def _getrange(self, key: bytes, start: bytes, end: bytes) -> Reply:
        """Return a part; offsets from the end are not supported."""
        return (self._string(key) or b"")[_integer(start) : _integer(end) + 1]

    @_command("DEL", writes=True)
    def _del(self, *keys: bytes) -> Reply:
        found = 0
        for key in keys:
            if self.find(key) is not None:
                self.delete(key)
                found += 1
        return found

    @_command("EXISTS")
    def _exists(self, *keys: bytes) -> Reply:
        return sum(self.find(key) is not None for key in keys)

    @_command("PEXPIRE", writes=True)
    def _pexpire(self, key: bytes, ttl: bytes) -> Reply:
        ttl_ms = _integer(ttl)
        if self.find(key) is None:
            return 0
        if ttl_ms <= 0:
            self.delete(key)
        else:
            self.ends[key] = self.now_us // 1000 + ttl_ms
        return 1

    @_command("PTTL")
    def _pttl(self, key: bytes) -> Reply:
        if self.find(key) is None:
            return -2
        end_ms = self.ends.get(key)
        return -1 if end_ms is None else max(0, end_ms - self.now_us // 1000)

    @_command("TIME")
    def _time(self) -> Reply:
        seconds, rest = divmod(self.now_us, 1_000_000)
        return [b"%d" % seconds, b"%d" % rest]

    @_command("ZADD", writes=True, grows=True)
    def _zadd(self, key: bytes, *words: bytes) -> Reply:
        only_new = words[0] == b"NX"
        pairs = words[1:] if only_new else words
        if len(pairs) % 2 or not re.fullmatch(rb"-?[\d.]+(e[+-]\d+)?", pairs[0]):
            _unknown("ZADD", words)
        found = self._set(key)
        if found is None:
            found = self.data[key] = SortedSet()
        added = 0
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            known = member in found.scores
            added += not known
            if not (known and only_new):
                found.add(member, float(score))
        return added

    @_command("ZREM", writes=True)
    def _zrem(self, key: bytes, *members: bytes) -> Reply:
        found = self._set(key)
        if found is None:
            return 0
        gone = sum(found.remove(member) for member in members)
        if not found.scores:
            self.delete(key)
        return gone

    @_command("ZCARD")
    def _zcard(self, key: bytes) -> Reply:
        found = self._set(key)
        return 0 if found is None else len(found.scores)

    @_command("ZSCORE")
    def _zscore(self, key: bytes, member: bytes) -> Reply:
        found = self._set(key)
        if found is None or member not in found.scores:
            return None
        return _score(found.scores[member])

    @_command("ZRANK")
    def _zrank(self, key: bytes, member: bytes) -> Reply:
        found = self._set(key)
        if found is None or member not in found.scores:
            return None
        return bisect_left(found.order, (found.scores[member], member))

    @_command("ZRANGE")
    def _zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Reply:
        return self._by_rank(key, first, last, options, backwards=False)

    @_command("ZREVRANGE")
    def _zrevrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Reply:
        return self._by_rank(key, first, last, options, backwards=True)

    def _by_rank(
        self, key: bytes, first: bytes, last: bytes, options: tuple[bytes, ...], *, backwards: bool
    ) -> Reply:
        if options not in ((), (b"WITHSCORES",)):
            _unknown("ZRANGE", options)
        found = self._set(key)
        if found is None:
            return []
        order = found.order[::-1] if backwards else found.order
        count, start, stop = len(order), _integer(first), _integer(last)
        start = max(0, start + count if start < 0 else start)
        stop = stop + count if stop < 0 else stop
        if stop < 0:
            return []
        return _members(order[start : stop + 1], bool(options))

    @_command("ZREVRANGEBYSCORE")
    def _zrevrangebyscore(self, key: bytes, most: bytes, least: bytes, *options: bytes) -> Reply:
        scores = options[:1] == (b"WITHSCORES",)
        rest = options[1:] if scores else options
        if rest and (len(rest) != 3 or rest[0] != b"LIMIT"):
            _unknown("ZREVRANGEBYSCORE", options)
        found = self._set(key)
        if found is None:
            return []
        chosen = [pair for pair in reversed(found.order) if _within(pair[0], least, most)]
        if rest:
            offset, count = _integer(rest[1]), _integer(rest[2])
            chosen = chosen[offset:] if count < 0 else chosen[offset : offset + count]
        return _members(chosen, scores)

    @_command("ZPOPMIN", writes=True)
    def _zpopmin(self, key: bytes) -> Reply:
        found = self._set(key)
        if found is None:
            return []
        score, member = found.order[0]
        found.remove(member)
        if not found.scores:
            self.delete(key)
        return [member, _score(score)]

    @_command("PUBLISH")
    def _publish(self, channel: bytes, message: bytes) -> Reply:
        if self.silent:
            raise Refused(FORBIDDEN)
        return self.publish(channel, message)

    @_command("PUBSUB")
    def _pubsub(self, verb: bytes, *channels: bytes) -> Reply:
        if verb != b"NUMSUB":
            _unknown("PUBSUB", (verb,))
        reply: list[Reply] = []
        for channel in channels:
            reply += [channel, self.numsub(channel)]
        return reply


def _members(pairs: list[tuple[float, bytes]], scores: bool) -> list[bytes]:
    if not scores:
        return [member for _, member in pairs]
    return [word for score, member in pairs for word in (member, _score(score))]


def _within(score: float, least: bytes, most: bytes) -> bool:
    low, high = float(least.lstrip(b"(")), float(most.lstrip(b"("))
    above = score > low if least.startswith(b"(") else score >= low
    return above and (score < high if most.startswith(b"(") else score <= high)


def _integer(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise Refused("ERR value is not an integer or out of range") from None


def _unknown(name: str, options: tuple[bytes, ...]) -> NoReturn:
    raise NotBuilt(f"the simulated {name} does not know these options: {options!r}")
