"""A worker process: take jobs from the stream, one after the other, until it says stop."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import redis

import lualock
from demo.events import EventLog
from demo.jobs import UpdateNetworkGraph

STREAM = "demo:stream"


def in_work(name: str) -> str:
    """Return the list that has the job of a worker until it is done."""
    return f"demo:in-work:{name}"


def main(url: str, folder: str, name: str) -> None:
    """Work until the stream says stop."""
    logging.basicConfig(filename=Path(folder) / f"{name}.log", level=logging.INFO)
    UpdateNetworkGraph.locks = lualock.connect("embedded://", holder=name)
    UpdateNetworkGraph.log = EventLog(Path(folder), name)
    UpdateNetworkGraph.results = Path(folder)
    with redis.Redis.from_url(url) as stream:
        while True:
            taken = stream.blmove(STREAM, in_work(name), 5, "LEFT", "RIGHT")
            if taken is None:
                continue
            job = json.loads(taken)
            if job == "stop":
                return
            UpdateNetworkGraph.run(**job)
            stream.lrem(in_work(name), 1, taken)


if __name__ == "__main__":
    main(*sys.argv[1:])
