"""A relay before a server that delays each reply."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def slowly(port: int, reply_s: float) -> Iterator[str]:
    """Yield a URL by which every reply of the server at that port takes ``reply_s`` longer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        opened: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    server = socket.create_connection(("127.0.0.1", port))
                    opened.extend((client, server))
                    _start(_forward, client, server, 0.0)
                    _start(_forward, server, client, reply_s)

        thread = _start(accept)
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in opened:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


def _start(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _forward(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
    with source, suppress(OSError):
        while data := source.recv(65536):
            time.sleep(delay_s)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)
