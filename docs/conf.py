"""Configure Sphinx: `make docs` builds the site, and treats warnings as errors."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import lualock

sys.path.append(str(Path(__file__).parent / "_extensions"))

project = "lualock"
version = release = lualock.__version__
copyright = "the lualock authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "from_code", "public_names"]
exclude_patterns = ["_build"]
nitpicky = True
# Every public name of lualock must have a place on a page. These names in annotations need none.
_OTHERS = "arq|collections|datetime|dramatiq|_pytest|redis|rq|saq|taskiq|typing|valkey"
_TYPES = r"(lualock\.jobs\.decorator\.)?(P|R|R_co|Decorator)(\.\w+)?|sync\.Lock|Seconds|LockKit"
_OF_MOCKS = "AsyncBroker|AsyncTaskiqDecoratedTask|ScheduleSource"
nitpick_ignore_regex = [("py:.*", rf"({_OTHERS})\..*|lualock\._.*|{_TYPES}|{_OF_MOCKS}")]

myst_heading_anchors = 4

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_mock_imports = [
    system
    for system in ("arq", "celery", "dramatiq", "huey", "rq", "saq", "taskiq")
    if find_spec(system) is None
]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"lualock {version}"
html_copy_source = False
