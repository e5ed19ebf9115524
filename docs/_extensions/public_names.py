"""Let references to a private module's class lead to the public name of the class."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

# Where a name is documented: the first of these rooms that has it.
ROOMS = "lualock.errors", "lualock", "lualock.aio", "lualock.jobs", "lualock.embedded"


@cache
def public_names() -> dict[str, str]:
    """Map each other name of a public class or function to the one that is documented."""
    names: dict[str, str] = {}
    for room in ROOMS:
        module = import_module(room)
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                here = f"{room}.{name}"
                public = names.setdefault(f"{value.__module__}.{value.__qualname__}", here)
                for alias in (name, here):
                    names.setdefault(alias, public)
    return names


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element
) -> Element | None:
    """Look a reference up again, by the name that is documented."""
    public = public_names().get(node["reftarget"])
    if node.get("refdomain") != "py" or public is None:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
