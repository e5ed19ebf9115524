"""The work: which repositories are connected, by forks and by common contributors."""

from __future__ import annotations

import json
from collections import deque
from importlib.resources import files
from typing import Any

Repository = dict[str, Any]


def repositories() -> dict[int, Repository]:
    """Return the repositories of the demo, by id."""
    text = (files("demo") / "repositories.json").read_text("utf-8")
    return {repository["id"]: repository for repository in json.loads(text)}


def network(repo_id: int) -> list[str]:
    """Return the names of all repositories that can be reached from this one, itself included."""
    known = repositories()
    reached = {repo_id}
    waiting = deque([repo_id])
    while waiting:
        here = known[waiting.popleft()]
        for other in known.values():
            related = (
                other["id"] == here["parent"]
                or other["parent"] == here["id"]
                or set(other["contributors"]) & set(here["contributors"])
            )
            if related and other["id"] not in reached:
                reached.add(other["id"])
                waiting.append(other["id"])
    return sorted(known[number]["name"] for number in reached)
