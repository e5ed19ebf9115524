"""Huey's consumer with greenlets. gevent patches the standard library first, as Huey asks for."""

# ruff: noqa: E402  # the imports come after the patch
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from huey.bin.huey_consumer import consumer_main

consumer_main()
