"""Derive a lock's name from a job's arguments: equal arguments always give the same name.

* Arguments are bound to the signature and defaults applied, so ``f(1)``, ``f(x=1)`` and, with a
  default of 1, ``f()`` are the same job.
* The text is type-tagged: ``1`` is not ``"1"``, ``1.0`` or ``True``. The order of a dict or a set
  does not matter.
* The producer and the worker must derive one name, so values that a job queue turns into each
  other are the same: a list and a tuple. For a queue that uses JSON these are also a member of an
  enumeration of ``str``, ``int`` or ``float`` and its value, and a dict's keys ``1``, ``True``,
  ``None`` and ``"1"``, ``"true"``, ``"null"``.
* Nothing depends on ``repr``, ``hash`` or an address: another process derives the same name.
* Short, plain arguments stay readable on the server; others become a digest.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import hashlib
import inspect
import json
import pathlib
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from lualock.errors import InvalidArgument

_VERSION = "v1"
_MAX_READABLE = 64
_MAX_DEPTH = 50


class _Unserialisable(Exception):
    """A value has no stable text. :func:`lock_name` adds the name of the argument."""


def canonical(value: Any, depth: int = 0) -> str:
    """Return a text that is the same for equal values of one type, in every process."""
    if depth > _MAX_DEPTH:
        raise _Unserialisable(f"is nested more than {_MAX_DEPTH} deep (or contains itself)")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return "0.0" if value == 0 else float.__repr__(value)  # -0.0 equals 0.0
    if isinstance(value, str):
        return json.dumps(str.__str__(value))  # a subclass may print another text
    if isinstance(value, enum.Enum):
        # Combined flags have no name in Python 3.10, unknown bits in no version; all have a number.
        known = value.name in type(value).__members__
        name = value.name if known else value.value
        return f"enum({json.dumps(f'{type(value).__qualname__}.{name}')})"
    for kind, tag in _TAGGED.items():
        if isinstance(value, kind):
            return tag(value)
    if isinstance(value, Mapping):
        pairs = ((_key(k, depth + 1), canonical(v, depth + 1)) for k, v in value.items())
        return "{" + ",".join(f"{k}:{v}" for k, v in sorted(pairs)) + "}"
    if isinstance(value, AbstractSet):
        return "set[" + ",".join(sorted(canonical(item, depth + 1) for item in value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + ",".join(canonical(item, depth + 1) for item in value) + "]"
    raise _Unserialisable(f"is a {type(value).__module__}.{type(value).__qualname__}")


def _key(key: Any, depth: int) -> str:
    if key is None or isinstance(key, int | float):  # (a bool is an int)
        key = json.dumps(key)
    return canonical(key, depth)


def _datetime(value: dt.datetime) -> str:
    if value.tzinfo is not None and value.utcoffset() is not None:
        value = value.astimezone(dt.timezone.utc)  # one text for one instant, in any time zone
    return f"datetime({value.isoformat()})"


def _decimal(value: decimal.Decimal) -> str:
    # 1.5 and 1.50 are equal; as fractions they also have the same text.
    return f"decimal({fractions.Fraction(value) if value.is_finite() else value})"


_TAGGED: dict[type | tuple[type, ...], Callable[[Any], str]] = {
    (bytes, bytearray, memoryview): lambda value: f"bytes({bytes(value).hex()})",
    dt.datetime: _datetime,  # before date, its base class
    dt.date: lambda value: f"date({value.isoformat()})",
    dt.time: lambda value: f"time({value.isoformat()})",
    dt.timedelta: lambda value: f"timedelta({value // dt.timedelta(microseconds=1)})",
    decimal.Decimal: _decimal,
    fractions.Fraction: lambda value: f"fraction({value})",
    pathlib.PurePath: lambda value: f"path({json.dumps(value.as_posix())})",
    uuid.UUID: lambda value: f"uuid({value.hex})",
}


def bind_arguments(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments by parameter, with defaults.

    :raises TypeError: as a call with these arguments does.
    """
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def with_defaults(
    signature: inspect.Signature,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Return the keyword arguments for a function of a job: those of a call, and defaults.

    A default is passed if the function has a parameter of its name. A function with ``**kwargs``
    may pass them on to one that does not. Nothing is added to arguments that do not fit.
    """
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return kwargs
    left_out = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is not parameter.empty
    }
    if not left_out:
        return kwargs
    try:
        takes = inspect.signature(function)
        takes.bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # the call raises that; or it is a builtin without a signature
        return kwargs
    filled = takes.bind_partial(*args).arguments
    by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = {
        name for name, parameter in takes.parameters.items() if parameter.kind in by_name
    } - filled.keys()
    return {**{name: left_out[name] for name in left_out.keys() & names}, **kwargs}


def call_with_defaults(
    signature: inspect.Signature, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Call a function with a job's arguments, and the defaults that it has a parameter for."""
    return function(*args, **with_defaults(signature, function, args, kwargs))


def _text(value: Any) -> str:
    try:
        return canonical(value)
    # More digits than Python prints, or a time that UTC cannot express.
    except (ValueError, OverflowError) as error:
        raise _Unserialisable(f"cannot be written as text ({error})") from None


def lock_name(job: str, arguments: Mapping[str, Any], version: int = 0) -> str:
    """Return the default name of a job's lock; ``version`` is the user's ``key_version``.

    :raises InvalidArgument: an argument has no text that is the same in every process.
    """
    texts = []
    for parameter, value in arguments.items():
        try:
            texts.append(_text(value))
        except _Unserialisable as reason:
            raise InvalidArgument(
                f"could not derive a lock name from argument {parameter!r} of job {job}: the "
                f"argument {reason}, and has no form that is the same in every process. Pass an id "
                "instead, or name the lock (key= of the decorator, lock() or identifier() of the "
                "class)"
            ) from None
    return _format_name(f"{job}@{version}" if version else job, ",".join(texts))


def _format_name(job: str, text: str) -> str:
    """Combine a job's name and the text of its arguments into a name of bounded length."""
    if len(text) > _MAX_READABLE or not text.isprintable() or "[" in text or "{" in text:
        text = "#" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    return f"job:{_VERSION}:{job}({text})"


def qualified_name(thing: Any) -> str:
    """Return ``module.name`` of a class or function, the same if its module runs as a program."""
    module = str(thing.__module__)  # a method of a built-in type has none
    if module in ("__main__", "__mp_main__"):  # the program, and it in a child of multiprocessing
        main = sys.modules.get(module)
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        if spec is not None and spec.name != "__main__":  # python -m package.module
            module = spec.name
        elif file:
            module = _module_of(pathlib.Path(file).absolute())
    return f"{module.removesuffix('.__main__')}.{thing.__qualname__}"


def check_closure(thing: Any, function: Any) -> None:
    """Check that a name does not stand for several functions, which one factory makes.

    :param thing: the class or function that the lock is named after.
    :param function: the job's body.
    :raises InvalidArgument: it may, because the function uses variables of the factory.
    """
    code = getattr(function, "__code__", None)
    variables = sorted({*getattr(code, "co_freevars", ())} - {"__class__"})  # of super()
    if variables and "<locals>" in thing.__qualname__:
        raise InvalidArgument(
            f"could not derive a lock name for {qualified_name(thing)}: it uses variables of the "
            f"function around it ({', '.join(variables)}), and all jobs that this function makes "
            "would have one lock. Pass key= with them (of a class: define identifier)"
        )


def _module_of(file: pathlib.Path) -> str:
    """Return the name under which a program's file is imported from its package."""
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").exists():
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts)
