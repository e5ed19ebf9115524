"""Quote the code in the site, so that each fact is written once.

The directive ``scripts`` lists the headers of the Lua scripts in a folder.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CODE = Path(__file__).parents[2] / "lualock"


class ScriptsDirective(SphinxDirective):
    """The header of each script in a folder: what it does, and each reply."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text: list[str] = []
        for path in sorted((CODE / self.arguments[0]).glob("*.lua")):
            lines = takewhile(
                lambda line: line.startswith("--"), path.read_text("utf-8").splitlines()
            )
            text += [f"### {path.stem}", "", "```lua", *lines, "```", ""]
        if not text:
            raise self.error(f"there are no scripts in {self.arguments[0]}")
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("scripts", ScriptsDirective)
    return {"parallel_read_safe": True}
