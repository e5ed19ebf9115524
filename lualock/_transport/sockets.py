"""Limit how long a socket may take: by the kernel's timeout where it is exact enough.

With a timeout of Python's, a poll() precedes each send and each receive: four more system calls
for acquire and release, a tenth of their cost. A timeout of the kernel's is an option of the
socket, and shows as EAGAIN. But its clock is coarse: by an eighth of the time, on Linux. So it is
used for short waits that no user's timeout depends on, and for the time after which a connection
counts as broken.

The kernel's timeout works only if the descriptor blocks. The sockets of gevent and eventlet pass
for ``socket.socket`` once these have patched it, but their descriptors never block.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct

# What a send or a receive raises when its time is over, by Python's timeout or the kernel's.
TIMED_OUT = (TimeoutError, BlockingIOError)

SHORT_S = 0.05
"""For a wait this short the kernel's clock is exact enough."""

MAX_TIMEOUT_S = 1e6
"""A longer wait counts as endless; both clocks have a limit."""


class Timeout:
    """The timeout of one socket. It need not be exact where it is ``usual_s``, or at most
    ``short_s``."""

    __slots__ = ("_kernel_active", "_kernel_works", "_short_s", "_socket", "_usual_s", "seconds")

    def __init__(self, connected: socket.socket, usual_s: float, short_s: float = 0.0) -> None:
        self._socket = connected
        self._usual_s = usual_s
        self._short_s = short_s
        connected.settimeout(None)
        self._kernel_works = (
            type(connected) is socket.socket  # TLS does its own reads
            and os.get_blocking(connected.fileno())
        )
        self._kernel_active = True
        self.seconds = -1.0
        self.set(usual_s)

    def set(self, seconds: float) -> None:
        """Set how long a send or a receive may take from now on."""
        if seconds == self.seconds:
            return
        self.seconds = seconds
        seconds = min(seconds, MAX_TIMEOUT_S)
        if self._kernel_works and (seconds <= self._short_s or seconds == self._usual_s):
            whole, part = divmod(seconds, 1)
            # Zero would mean no timeout.
            value = struct.pack("ll", int(whole), max(1, int(part * 1e6)))
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            except OSError:
                self._kernel_works = False  # a platform with another struct timeval
            else:
                if not self._kernel_active:
                    self._socket.settimeout(None)
                    self._kernel_active = True
                return
        self._kernel_active = False
        self._socket.settimeout(seconds)


RECEIVE_BYTES = 4096


_SILENCE_SHARE, SILENCE_MIN_S = 1 / 4, 0.2


MIN_TIMEOUT_S = 0.001
"""The timeout of a socket when the time is over; zero would mean not to wait at all."""


def silence_s(left_s: float) -> float:
    """Return how long a connection may be silent when this much time is left for a reply. After
    that, the request is sent again on a fresh connection: the old one may be dead (a NAT, a load
    balancer)."""
    return max(SILENCE_MIN_S, left_s * _SILENCE_SHARE)


def receive_now(connected: socket.socket) -> bytes:
    """Return the data that has been received, without waiting.

    :raises BlockingIOError: there is none.
    """
    usual_s = connected.gettimeout()
    if usual_s is None:
        return connected.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
    connected.settimeout(0)
    try:
        return connected.recv(RECEIVE_BYTES)
    except ssl.SSLWantReadError:
        raise BlockingIOError from None
    finally:
        connected.settimeout(usual_s)
