"""Run the shipped Lua, byte for byte, in Lua 5.1 over a :class:`Store`. (Dragonfly has Lua 5.4.)

Each process has one runtime: a script is compiled once, and each run gets fresh KEYS and ARGV. As
in the real server, a script can neither read nor create a global variable.
"""

from __future__ import annotations

from typing import Any

from lupa import lua51  # type: ignore[import-untyped]  # it has no type hints

from tests.simulation.store import OK, NotBuilt, Refused, Reply, Store

_RUN = b"""
local list, error_reply, call, pcall_ = ...
local unpack, loadstring = unpack or table.unpack, loadstring or load
redis = {call = call, pcall = pcall_}
local function convert(value)
  local kind = type(value)
  if kind == 'number' then
    return value >= 0 and math.floor(value) or math.ceil(value)
  elseif kind == 'boolean' then
    return value and 1 or nil
  elseif kind ~= 'table' then
    return value
  elseif value.err then
    return error_reply(value.err)
  elseif value.ok then
    return value.ok
  end
  local count, items = 0, {}
  for at = 1, #value do
    if value[at] == nil then
      break
    end
    count = at
    items[at] = convert(value[at])
  end
  return list(unpack(items, 1, count))
end
local sethook = debug.sethook
local function endless()
  sethook()
  error('the script runs for ever')
end
local function run(chunk, keys, ...)
  local arguments = {...}
  local KEYS, ARGV = {}, {}
  for at = 1, #arguments do
    if at <= keys then
      KEYS[at] = arguments[at]
    else
      ARGV[at - keys] = arguments[at]
    end
  end
  rawset(_G, 'KEYS', KEYS)
  rawset(_G, 'ARGV', ARGV)
  sethook(endless, '', 100000)
  local reply = chunk()
  sethook()
  if type(reply) == 'string' then
    return reply
  end
  return convert(reply)
end
python, os, io, package, require, dofile, loadfile = nil
rawset(_G, 'KEYS', {})
rawset(_G, 'ARGV', {})
setmetatable(_G, {
  __index = function(_, name) error('nonexistent global variable ' .. tostring(name)) end,
  __newindex = function(_, name) error('attempt to create global variable ' .. tostring(name)) end,
})
return run, loadstring
"""


class Broke(Exception):
    """A script failed with a Lua error: a bug, whatever a server answers then."""


class Interpreter:
    """Runs scripts over one store."""

    def __init__(self, store: Store, version: Any = lua51) -> None:
        self.store, self._error = store, version.LuaError
        self.runs = 0
        lua = version.LuaRuntime(encoding=None, unpack_returned_tuples=True)
        self._table_from, self._table = lua.table_from, lua.table
        self._status = {id(OK): lua.table_from({b"ok": b"OK"})}
        boot = lua.eval(b"loadstring or load")(_RUN)
        self._run, self._load = boot(lambda *items: list(items), Refused, self._call, self._pcall)
        self._chunks: dict[bytes, Any] = {}

    def run(self, source: bytes, keys: int, words: tuple[bytes, ...]) -> Reply:
        """Run one script on its keys and arguments.

        :raises Refused: the server answers an error.
        """
        chunk = self._chunks.get(source)
        if chunk is None:
            chunk = self._load(source)
            if isinstance(chunk, tuple):
                raise Broke(f"a script does not compile: {chunk[1]}")
            self._chunks[source] = chunk
        self.runs += 1
        self.store.wrote = False
        try:
            reply = self._run(chunk, keys, *words)
        except self._error as error:
            raise Broke(str(error)) from None
        if isinstance(reply, Refused):
            raise reply
        return reply

    def _call(self, *words: Any) -> Any:
        reply = self.store.call(*words)
        kind = type(reply)
        if kind is bytes or kind is int:
            return reply
        if reply is None:
            return False
        if kind is list:
            return self._table_from(reply)
        if reply is OK:
            return self._status[id(OK)]
        raise NotBuilt(f"a reply of an unknown kind: {reply!r}")

    def _pcall(self, *words: Any) -> Any:
        try:
            return self._call(*words)
        except Refused as error:
            return self._table_from({b"err": str(error).encode()})
