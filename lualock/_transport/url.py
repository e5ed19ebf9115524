"""A server's URL: what redis-py would ignore or find out late is refused at once.

What is ignored is not harmless: another database has other locks, and without TLS a password goes
in the clear.
"""

from __future__ import annotations

import difflib
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from lualock.errors import InvalidArgument

SCHEMES = "redis", "rediss", "unix"

_USED = {
    *("db", "username", "password", "client_name", "protocol", "encoding", "encoding_errors"),
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive"),
}
# What a client of redis-py's takes, and no connection of ours is told. One URL is for both.
_DROPPED = {
    *("max_connections", "decode_responses", "health_check_interval", "retry_on_timeout"),
    *("retry_on_error", "socket_read_size", "legacy_responses", "lib_name", "lib_version"),
    *("single_connection_client", "auto_close_connection_pool"),
}
_INSTEAD = {
    "ssl": "for TLS it begins with rediss://",
    "tls": "for TLS it begins with rediss://",
    "timeout": "write socket_timeout= or socket_connect_timeout=",
    "host": "the host comes after redis://",
    "port": "the port comes after the host: redis://host:6379",
    "path": "the socket's path comes after unix://",
}


def check(url: str) -> None:
    """See that all of a URL means something.

    :raises InvalidArgument: it does not.
    """
    try:
        parts = urlsplit(url)
        told = _tellable(parts)
        said = _wrong(parts)
    except ValueError:
        raise not_a_url() from None
    if said:
        raise not_a_url(said if told else None)


def not_a_url(said: str | None = None) -> InvalidArgument:
    """The error that says so, and what is wrong if that is known and may be told."""
    return InvalidArgument(
        f"not a server's URL{f': {said}' if said else ''}. It begins with redis://, rediss:// or "
        "unix://; what is special in a user name or password (/ # ? @ : [ ] %) is written as %2F "
        "and so on"
    )


def tellable(url: str) -> bool:
    """Whether what is said of a URL that :func:`check` passed cannot be a part of its password."""
    return _tellable(urlsplit(url))


def _tellable(parts: SplitResult) -> bool:
    # An @ after the host: that was no host, but the beginning of a password.
    beyond = parts.path + parts.query + parts.fragment
    return "@" not in beyond and "password" not in unquote(parts.query)


def _wrong(parts: SplitResult) -> str | None:
    if parts.scheme not in SCHEMES:
        return f"it begins with {parts.scheme}:" if parts.netloc else "it has no scheme"
    if parts.fragment:
        return "nothing comes after a #"
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            return "after unix:// comes a path that begins with /, as in unix:///run/redis.sock"
    else:
        wrong = _wrong_server(parts)
        if wrong:
            return wrong
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name.startswith("ssl_"):
            if parts.scheme != "rediss":
                return f"{name} is for TLS, and that URL begins with rediss://"
        elif name not in _USED | _DROPPED:
            return f"{name!r} means nothing in it{_instead(name)}"
        elif name == "db" and value.startswith("-"):
            return "the number of a database is not below 0"
    return None


def _wrong_server(parts: SplitResult) -> str | None:
    try:
        port = parts.port
    except ValueError:
        port = 0  # what stands there may be a password that lacks its host
    if port == 0:
        return "the port is no number from 1 to 65535"
    try:
        host = unquote(parts.hostname or "")
        host.encode("idna")
    except UnicodeError:
        host = "\0"
    if "\0" in host:
        return "the host is none"
    # redis-py takes what is no number for database 0, and /1/2 for 12.
    path = unquote(parts.path).strip("/")
    if path and not (path.isdecimal() and len(path) < 10):
        return f"after the host comes the number of a database, and not {path!r}"
    return None


def _instead(name: str) -> str:
    if name in _INSTEAD:
        return f": {_INSTEAD[name]}"
    near = difflib.get_close_matches(name, _USED | _DROPPED, 1)
    return f": did you mean {near[0]}?" if near else ""
