"""`make bench`: lualock beside the plain ways, over lualock's public API only.

``uncontended`` measures what a lock costs, ``races`` what it is worth, ``server_cost`` what it
costs the server. ``rivals`` has one small adapter each, ``report`` makes JSON and Markdown.
"""
