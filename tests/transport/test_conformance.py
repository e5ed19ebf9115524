"""The simulator's store and real servers run the same commands and scripts, and must give the same
replies and data."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import redis

from lualock._transport import codec
from tests.simulation.probes import ALL, CHANNEL, NO_RECEIVER, Words, random_call
from tests.simulation.scripting import Interpreter
from tests.simulation.store import COMMANDS, Refused, SortedSet, Store
from tests.support.proving import proof_of
from tests.support.servers import Server

KEYS = (b"{k}a", b"{k}b", b"{k}q")
TTL_MS = 600_000  # no key expires during a test; the times are compared all the same

# Runs one command as the scripts do, and shows how the reply looks to Lua.
PROBE = b"""
local function show(value)
  if type(value) ~= 'table' then
    return type(value) .. ':' .. tostring(value)
  elseif value.ok then
    return 'ok:' .. value.ok
  elseif value.err then
    return 'err:' .. string.match(value.err, '%u%u%u+')
  end
  local shown = {}
  for at, item in ipairs(value) do
    shown[at] = show(item)
  end
  return '{' .. table.concat(shown, ',') .. '}'
end
return show(redis.pcall(unpack(ARGV)))
"""

# A write, and then one that needs memory: only the first write of a script can be refused for it.
TWO_WRITES = b"""
local first = redis.pcall(unpack(ARGV))
local second = redis.pcall('SET', KEYS[1], 'x', 'PX', 600000)
return {type(first), second.err and string.match(second.err, '%u%u%u+') or second.ok}
"""


class Pair:
    """A real server and the store, side by side."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.store = Store()
        self.lua = Interpreter(self.store)

    def sync(self) -> None:
        """Set the store's clock to the server's."""
        seconds, us = self.client.time()
        self.store.now_us = seconds * 1_000_000 + us

    def run(
        self, source: bytes, keys: tuple[bytes, ...], args: tuple[bytes, ...]
    ) -> tuple[Any, Any]:
        """Return the replies of both; an error is its first word."""
        self.sync()
        real: Any
        try:
            real = self.client.eval(source, len(keys), *keys, *args)
        except redis.OutOfMemoryError:  # redis-py removes the first word
            real = "OOM"
        except redis.ResponseError as error:
            real = _word(str(error))
        ours: Any
        try:
            ours = self.lua.run(source, len(keys), keys + args)
        except Refused as error:
            ours = _word(str(error))
        return real, ours

    def data(self) -> tuple[dict[bytes, Any], dict[bytes, Any]]:
        """Return the data of both, with each key's remaining time in whole seconds."""
        self.sync()
        real: dict[bytes, Any] = {}
        for key in self.client.keys("*"):
            value: Any
            if self.client.type(key) == b"string":
                value = self.client.get(key)
            else:
                value = self.client.zrange(key, 0, -1, withscores=True)
            real[key] = value, round(self.client.pttl(key) / 1000)
        ours: dict[bytes, Any] = {}
        for key, value in self.store.data.items():
            if isinstance(value, SortedSet):
                value = [(member, score) for score, member in value.order]
            end_ms = self.store.ends.get(key)
            left_ms = -1 if end_ms is None else end_ms - self.store.now_us // 1000
            ours[key] = value, round(left_ms / 1000)
        return real, ours


def _word(text: str) -> str:
    """Return the first word of an error; Redis 6.2 puts the script before it."""
    for word in ("OOM", "READONLY", "WRONGTYPE"):
        if word in text:
            return word
    return text.split()[0]


@pytest.fixture
def pair(server: Server) -> Any:
    """Return each server of the matrix beside the store."""
    with server.client() as client:
        yield Pair(client)
        client.config_set("maxmemory", "0")


def random_command(chance: Random) -> tuple[bytes, ...]:
    """Draw a command, as the scripts could use it."""
    key = chance.choice(KEYS)
    member = chance.choice((b"m1", b"m2", b"m3", b"x" * 22 + b"100 c h"))
    score = b"%d" % chance.choice((0, 1, 2, 3, 200 * 2**44 + 17, 2**44))
    index = b"%d" % chance.randrange(-4, 4)
    ttl = b"%d" % (TTL_MS + chance.randrange(3) * 60_000)
    return chance.choice(
        (
            (b"GET", key),
            (b"SET", key, b"H" + b"v" * chance.randrange(50)),
            (b"SET", key, b"value", b"PX", ttl),
            (b"SETRANGE", key, b"%d" % chance.randrange(6), b"W"),
            (b"GETRANGE", key, b"0", b"%d" % chance.choice((0, 7, 38, 60))),
            (b"DEL", key),
            (b"EXISTS", key),
            (b"PEXPIRE", key, chance.choice((ttl, b"0", b"-5"))),
            (b"ZADD", key, b"NX", score, member),
            (b"ZADD", key, score, member),
            (b"ZREM", key, member),
            (b"ZCARD", key),
            (b"ZSCORE", key, member),
            (b"ZRANK", key, member),
            (b"ZRANGE", key, index, b"%d" % chance.randrange(-4, 4)),
            (b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"),
            (b"ZREVRANGE", key, b"0", index, b"WITHSCORES"),
            (b"ZREVRANGEBYSCORE", key, b"(" + score, b"0", b"WITHSCORES", b"LIMIT", b"0", b"1"),
            (b"ZREVRANGEBYSCORE", key, score, b"1"),
            (b"ZPOPMIN", key),
            (b"PUBLISH", CHANNEL, b"message"),
            (b"PUBSUB", b"NUMSUB", CHANNEL),
        )
    )


@pytest.mark.parametrize("seed", range(4))
def test_commands_answer_as_real_ones_do(pair: Pair, seed: int) -> None:
    """A random stream of commands gives the same replies, as Lua sees them, and the same data."""
    chance = Random(seed)
    for number in range(400):
        command = random_command(chance)
        real, ours = pair.run(PROBE, (), command)
        assert ours == real, (seed, number, command)
        if number % 20 == 0:
            real_data, our_data = pair.data()
            assert our_data == real_data, (seed, number, command)


def test_every_command_is_compared() -> None:
    """Every command of the store is in the stream."""
    chance = Random(0)
    seen = {random_command(chance)[0] for _ in range(2000)}
    assert seen >= set(COMMANDS) - {b"TIME", b"PTTL"}  # these differ by a microsecond: see below


def test_time_and_remaining_time(pair: Pair) -> None:
    """TIME answers two texts, PTTL a number, which is -1 or -2 without a time."""
    for command, tolerance in ((b"TIME", 5), (b"PTTL", 5000)):
        words = (command,) if command == b"TIME" else (command, KEYS[0])
        pair.run(PROBE, (), (b"SET", KEYS[0], b"x", b"PX", b"10000"))
        source = b"local r = redis.call(unpack(ARGV)); return r"
        real, ours = pair.run(source, (), words)
        first_real = int(real[0] if isinstance(real, list) else real)
        first_ours = int(ours[0] if isinstance(ours, list) else ours)
        assert abs(first_real - first_ours) <= tolerance
    for key in (b"{k}none", KEYS[1]):
        pair.run(PROBE, (), (b"SET", KEYS[1], b"x"))
        real, ours = pair.run(PROBE, (), (b"PTTL", key))
        assert real == ours


@pytest.mark.parametrize(
    "first", [b"DEL k", b"ZREM k m", b"ZPOPMIN k", b"SET k v", b"GET k", b"PUBLISH k m", b"TIME"]
)
def test_out_of_memory_only_the_first_write_is_refused(pair: Pair, first: bytes) -> None:
    """After an allowed write later ones pass too; reads and messages do not count as writes."""
    pair.client.config_set("maxmemory", "1")
    pair.store.oom = True
    real, ours = pair.run(TWO_WRITES, KEYS[:1], tuple(first.split()))
    assert ours == real


@pytest.mark.parametrize("seed", range(3))
def test_scripts_answer_as_real_ones_do(pair: Pair, seed: int) -> None:
    """Random streams of scripts, with and without memory, give the same replies and data, except
    for what depends on the microsecond."""
    chance = Random(seed)
    pubsub = pair.client.pubsub()
    pubsub.subscribe(CHANNEL)
    assert pubsub.get_message(timeout=5)["type"] == "subscribe"
    receivers = {CHANNEL: 1}
    pair.store.publish = lambda channel, message: receivers.get(channel, 0)
    pair.store.numsub = lambda channel: receivers.get(channel, 0)
    words = Words(
        tickets=[
            b"%022d%d %b web" % (number, TTL_MS, channel)
            for number in range(4)
            for channel in (CHANNEL, NO_RECEIVER)
        ],
        fences=(b"9" * 16, b"0" * 16),  # the true ones differ by microseconds
        deadlines=(b"9" * 16, b"9" * 16, b"9" * 16, b"0" * 16),
        scores=[b"%d" % (band * 2**44) for band in (100, 101)],
        ttls_ms=(b"%d" % TTL_MS,),
        whole=False,
    )
    for number in range(300):
        if number % 50 == 49:
            pair.store.oom = not pair.store.oom
            pair.client.config_set("maxmemory", "1" if pair.store.oom else "0")
        call = random_call(chance, chance.choice(ALL), words)
        script = call.script
        proof, parts = proof_of(script, call.parts)
        keys, args = parts[: len(script.keys)], parts[len(script.keys) :]
        real, ours = (
            reply if isinstance(reply, str) else codec.strip_proof(reply, proof)
            for reply in pair.run(script.source, keys, args)
        )
        assert _timeless(ours) == _timeless(real), (seed, number, script.name, args)
        real_data, our_data = pair.data()
        assert _shapes(our_data) == _shapes(real_data), (seed, number, script.name, args)
    pubsub.close()


def _timeless(reply: Any) -> Any:
    """Return a reply without times, fences and places, which depend on the microsecond."""
    if isinstance(reply, list):
        words = b"held", b"queued", b"running", b"full", b"left", b"owned"
        timed = reply and reply[0] in words
        return [
            "time" if timed and at in (1, 2) and isinstance(item, int) else _timeless(item)
            for at, item in enumerate(reply)
        ]
    if isinstance(reply, bytes) and reply.isdigit() and len(reply) > 12:
        return "time"
    return reply


def _shapes(data: dict[bytes, Any]) -> dict[bytes, Any]:
    """Return the data without times: the order of the queue, and the record without its fence."""
    shapes: dict[bytes, Any] = {}
    for key, (value, left_s) in data.items():
        if isinstance(value, list):
            value = [member for member, _ in value]
        elif key.endswith(b":stop_requests"):
            value = [value[at + 16 : at + 38] for at in range(0, len(value), 38)]
        else:
            value = value[:1] + value[17:]
        shapes[key] = value, (left_s + 30) // 60  # none of the times used is near a half minute
    return shapes
