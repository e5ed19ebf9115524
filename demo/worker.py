"""A worker process: takes jobs from the stream, one after the other, until it is told to stop."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import redis

import lualock
from demo.events import Diary
from demo.jobs import UpdateNetworkGraph

STREAM = "demo:stream"


def in_work(who: str) -> str:
    """The list that has the job a worker took, until it is done with it."""
    return f"demo:in-work:{who}"


def main(url: str, folder: str, who: str) -> None:
    """Work until the stream says stop."""
    logging.basicConfig(filename=Path(folder) / f"{who}.log", level=logging.INFO)
    UpdateNetworkGraph.locks = lualock.connect("embedded://", holder=who)
    UpdateNetworkGraph.diary = Diary(Path(folder), who)
    UpdateNetworkGraph.results = Path(folder)
    with redis.Redis.from_url(url) as stream:
        while True:
            taken = stream.blmove(STREAM, in_work(who), 5, "LEFT", "RIGHT")
            if taken is None:
                continue
            job = json.loads(taken)
            if job == "stop":
                return
            UpdateNetworkGraph.run(**job)
            stream.lrem(in_work(who), 1, taken)


if __name__ == "__main__":
    main(*sys.argv[1:])
