"""The hook: a frozen program has the Lua scripts."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("lualock")
