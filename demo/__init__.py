"""`make demo`: jobs wrapped, refused, expired and crashed, against a real embedded server.

``jobs`` is what a user of lualock writes. ``worker`` is a process that takes jobs from a stream,
``story`` drives the run, ``events`` is what everybody writes down, and ``checks`` proves from that
alone that what was shown is what happened.
"""
