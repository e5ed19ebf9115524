"""`make demo`: jobs that run, are refused, expire and crash, on a real embedded server.

``jobs`` is what a user of lualock writes. ``worker`` is a process that takes jobs from a stream,
``story`` drives the run, and ``events`` records what each process does. ``checks`` proves from the
events alone that what was shown is what happened.

"""
