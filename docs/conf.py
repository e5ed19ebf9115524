"""Configure Sphinx: `make docs` builds the site."""

from __future__ import annotations

import lualock

project = "lualock"
version = release = lualock.__version__
copyright = "the lualock authors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"lualock {version}"
html_copy_source = False
