"""The reply to a call that was sent without waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hiredis import ReplyError

from lualock._protocol import RunScript
from lualock._transport import errors
from lualock.errors import LockUnavailable

if TYPE_CHECKING:
    from lualock._transport.threads.connection import Connection


class SentReply:
    """The reply to a call that was sent without waiting, as a ``PendingReply`` of the protocol.

    It is read when its connection is used next, or when it is polled.
    """

    __slots__ = ("_collect", "_reply", "call", "connection", "proof")

    def __init__(
        self,
        call: RunScript,
        proof: bytes,
        connection: Connection,
        collect: Callable[[Connection], None],
    ) -> None:
        self.call = call
        self.proof = proof
        self.connection: Connection | None = connection
        self._collect = collect
        self._reply: Any = None

    def resolve(self, reply: Any) -> None:
        """Set the reply; ``None``: it will never come."""
        self._reply = reply
        self.connection = None

    @property
    def answered(self) -> bool:
        """Whether the reply has been read."""
        return self.connection is None and self._reply is not None

    def poll(self) -> Any:
        """Return the reply, ``None`` while it has not come, or an error. Never waits."""
        if (connection := self.connection) is not None:
            self._collect(connection)
        if self.connection is None and self._reply is None:
            return LockUnavailable(
                "could not read the reply: its connection broke", outcome_unknown=True
            )
        if isinstance(self._reply, ReplyError):
            return errors.reply_error(str(self._reply), self.call)
        return self._reply
