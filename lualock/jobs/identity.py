"""How the id and the token of a job are written, sent and stored."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from lualock.errors import InvalidArgument

_MAX_ID_BYTES = 128
"""A longer job id is stored as a digest, because the text beside a lock is limited."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}(?:\.(?:[\w~-]|%2E|%[0-9A-F]{2})+)*", re.ASCII)


def token_of(job_id: str) -> str:
    """Derive a token from a job's id, for systems that cannot carry a token of their own.

    Any process that knows the id can derive the token. Two jobs with one id count as one job:
    enqueueing the second returns the reservation of the first.
    """
    digest = hashlib.sha256(b"lualock job " + job_id.encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest[:16])[:22].decode()


def encode_token(token: object) -> bytes:
    """Return a job's token as it is sent.

    :raises InvalidArgument: it is not a token.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise InvalidArgument(
            "could not use the token: it is not a job's token. Pass the token from enqueueing, "
            "unchanged"
        )
    return token[:22].encode()


def with_names(token: bytes, names: Iterable[bytes]) -> str:
    """Return a token together with the names of the locks whose reservation it has.

    The names travel with the job, because its arguments may name other locks when it is delivered:
    the job has changed them, its system has parsed them, or the function was renamed.
    """
    return ".".join((token.decode(), *(quote(name, safe="").replace(".", "%2E") for name in names)))


def names_in(token: str | None) -> tuple[bytes, ...]:
    """Return the names that travelled with a token; none if it is only a token.

    :raises InvalidArgument: it is not a token.
    """
    if not token:
        return ()
    encode_token(token)
    return tuple(unquote_to_bytes(name) for name in token.split(".")[1:])


def job_metadata(job_id: str) -> str:
    """Return the metadata that is stored beside the locks of a job.

    A digest replaces a very long id, and one that is not valid text for a server (a lone
    surrogate), so that different ids stay different.

    :raises InvalidArgument: the id is not a str, or is empty.
    """
    if not isinstance(job_id, str) or not job_id:
        raise InvalidArgument("a job's id must be a str, and must not be empty")
    raw = job_id.encode("utf-8", "surrogatepass")
    if len(raw) > _MAX_ID_BYTES or raw != job_id.encode("utf-8", "replace"):
        return f"long job {hashlib.sha256(raw).hexdigest()[:40]}"
    return f"job {job_id}"


def job_id_of(metadata: str) -> str | None:
    """Return the job's id from metadata, or ``None`` if it names no job or only has a digest."""
    return metadata[4:] if metadata.startswith("job ") else None
