"""How long a socket may take: by the kernel where that is exact enough.

With a timeout of Python's, each send and each receive is preceded by a poll(), four system calls
more for acquire and release, a tenth of what they cost. A timeout of the kernel's is an option of
the socket, and shows as EAGAIN. But its clock is coarse: by an eighth of the time, on Linux. So it
is for short waits that nobody's timeout depends on, and for the time after which a connection
counts as broken.

The kernel's timeout counts only where the descriptor blocks. The sockets of gevent and eventlet
pass for ``socket.socket`` once these have patched it, but their descriptors never block.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct

# What a send or a receive raises whose time is over: Python's, and the kernel's.
TIMED_OUT = (TimeoutError, BlockingIOError)

SHORT_S = 0.05
"""A wait that is so short that the kernel's clock is good enough for it."""

LONGEST_S = 1e6
"""A longer wait than this is one without an end; both clocks have a limit."""


class Timeout:
    """The timeout of one socket; it need not be exact while it is ``usual_s``, or up to
    ``short_s``."""

    __slots__ = ("_kernel_can", "_kernel_does", "_short_s", "_socket", "_usual_s", "seconds")

    def __init__(self, connected: socket.socket, usual_s: float, short_s: float = 0.0) -> None:
        self._socket = connected
        self._usual_s = usual_s
        self._short_s = short_s
        connected.settimeout(None)
        self._kernel_can = (
            type(connected) is socket.socket  # TLS does its own reads
            and os.get_blocking(connected.fileno())
        )
        self._kernel_does = True
        self.seconds = -1.0
        self.set(usual_s)

    def set(self, seconds: float) -> None:
        """How long a send or a receive may take from now on."""
        if seconds == self.seconds:
            return
        self.seconds = seconds
        seconds = min(seconds, LONGEST_S)
        if self._kernel_can and (seconds <= self._short_s or seconds == self._usual_s):
            whole, part = divmod(seconds, 1)
            # Zero would mean for ever.
            value = struct.pack("ll", int(whole), max(1, int(part * 1e6)))
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            except OSError:
                self._kernel_can = False  # a platform with another struct timeval
            else:
                if not self._kernel_does:
                    self._socket.settimeout(None)
                    self._kernel_does = True
                return
        self._kernel_does = False
        self._socket.settimeout(seconds)


CHUNK = 4096


SILENCE, SILENCE_LEAST_S = 1 / 4, 0.2
"""After which share of its time, and no sooner than that, a request without a reply is sent again
on a fresh connection: the old one may be dead without a word (a NAT, a load balancer)."""


LEAST_S = 0.001
"""The least that a socket is given when the time is over; zero would mean not to wait at all."""


def silence_s(left_s: float) -> float:
    """How long a connection may be silent when so much time is left for a reply."""
    return max(SILENCE_LEAST_S, left_s * SILENCE)


def receive_now(connected: socket.socket) -> bytes:
    """What has been received, without waiting.

    :raises BlockingIOError: nothing has.
    """
    usual_s = connected.gettimeout()
    if usual_s is None:
        return connected.recv(CHUNK, socket.MSG_DONTWAIT)
    connected.settimeout(0)
    try:
        return connected.recv(CHUNK)
    except ssl.SSLWantReadError:
        raise BlockingIOError from None
    finally:
        connected.settimeout(usual_s)
