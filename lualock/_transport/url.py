"""Check a server's URL: refuse at once what redis-py would ignore or report late.

An ignored part does harm: another database has other locks, and without TLS a password is sent in
clear text.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from lualock.errors import InvalidArgument

_OF_REDIS = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
"""The scheme that redis-py knows for each scheme of a server with a host."""
EMBEDDED = "embedded://"
"""The whole URL of the embedded server."""

_USED = {
    *("db", "username", "password", "client_name", "protocol", "encoding", "encoding_errors"),
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "max_connections"),
}
# Settings of a redis-py client that our connections do not get: one URL may serve both.
_DROPPED = {
    *("decode_responses", "health_check_interval", "retry_on_timeout"),
    *("retry_on_error", "socket_read_size", "legacy_responses", "lib_name", "lib_version"),
    *("single_connection_client", "auto_close_connection_pool"),
}
_INSTEAD = {
    "ssl": "for TLS it begins with rediss:// or valkeys://",
    "tls": "for TLS it begins with rediss:// or valkeys://",
    "timeout": "write socket_timeout= or socket_connect_timeout=",
    "host": "the host comes after redis://",
    "port": "the port comes after the host: redis://host:6379",
    "path": "the socket's path comes after unix://",
}


def check(url: str) -> None:
    """Check that each part of a URL has a meaning.

    :raises InvalidArgument: a part has none.
    """
    try:
        parts = urlsplit(url)
        may_quote = _may_quote(parts)
        problem = _problem(parts)
    except ValueError:
        raise not_a_url() from None
    if problem:
        raise not_a_url(problem if may_quote else None)


def for_redis(url: str) -> str:
    """Return a URL that passed :func:`check` with the scheme that redis-py knows."""
    scheme, colon, rest = url.partition(":")
    return _OF_REDIS.get(scheme.lower(), scheme) + colon + rest


def not_a_url(problem: str | None = None) -> InvalidArgument:
    """Return the error for an invalid URL, with the problem if it is known and may be quoted."""
    detail = f": {problem}" if problem else ""
    return InvalidArgument(
        f"not a server's URL{detail}. It begins with redis://, rediss://, valkey://, valkeys:// or "
        f"unix://, or is {EMBEDDED}; a special character in a user name or password "
        "(/ # ? @ : [ ] %) is written as %2F and so on"
    )


def may_quote(url: str) -> bool:
    """Return whether an error may quote a URL that passed :func:`check`: no part of it can belong
    to a password."""
    return _may_quote(urlsplit(url))


def _may_quote(parts: SplitResult) -> bool:
    # An @ after the host: the host was the beginning of a password.
    beyond = parts.path + parts.query + parts.fragment
    return "@" not in beyond and "password" not in unquote(parts.query)


def _problem(parts: SplitResult) -> str | None:
    if parts.scheme == "embedded":
        return _embedded_problem(parts)
    if parts.scheme not in (*_OF_REDIS, "unix"):
        return f"it begins with {parts.scheme}:" if parts.netloc else "it has no scheme"
    if parts.fragment:
        return "a # has no meaning in it"
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            return "after unix:// comes a path that begins with /, as in unix:///run/redis.sock"
    else:
        problem = _server_problem(parts)
        if problem:
            return problem
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name.startswith("ssl_"):
            if _OF_REDIS.get(parts.scheme) != "rediss":
                return f"{name} is for TLS, and that URL begins with rediss:// or valkeys://"
        elif name not in _USED | _DROPPED:
            return f"{name!r} means nothing in it{_instead(name)}"
        elif name == "db" and value.startswith("-"):
            return "the number of a database cannot be below 0"
    return None


def _embedded_problem(parts: SplitResult) -> str:
    for name, value in zip(("scheme", "host", "path", "query", "fragment"), parts, strict=True):
        if value and name != "scheme":
            return f"{EMBEDDED} has no {name}"
    return f"the embedded server's is exactly {EMBEDDED}"


def _server_problem(parts: SplitResult) -> str | None:
    try:
        port = parts.port
    except ValueError:
        port = 0  # it may be a password whose host is missing
    if port == 0:
        return "the port is not a number from 1 to 65535"
    try:
        host = unquote(parts.hostname or "")
        host.encode("idna")
    except UnicodeError:
        host = "\0"
    if "\0" in host:
        return "the host is not valid"
    # redis-py reads a path that is not a number as database 0, and /1/2 as 12.
    path = unquote(parts.path).strip("/")
    if path and not (path.isdecimal() and len(path) < 10):
        return f"after the host comes the number of a database, not {path!r}"
    return None


def _instead(name: str) -> str:
    if name in _INSTEAD:
        return f": {_INSTEAD[name]}"
    import difflib  # for this error only

    near = difflib.get_close_matches(name, _USED | _DROPPED, 1)
    return f": did you mean {near[0]}?" if near else ""
