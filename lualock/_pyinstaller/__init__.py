"""Tell PyInstaller what belongs to this package; PyInstaller finds it on its own."""

from __future__ import annotations

import os


def hook_folders() -> list[str]:
    """Return the folder of the hook. (PyInstaller takes no folder within a zip file.)"""
    return [os.path.dirname(__file__)]
