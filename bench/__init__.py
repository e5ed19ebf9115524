"""`make bench`: lualock beside every rival that can be installed, over public APIs only.

``rivals/`` has one small adapter each. ``scenarios`` lists the scenarios, a module each.
``setting`` runs rounds and records rivals that break, ``crowd`` makes many processes contend for
one lock. ``report``, ``plots`` and ``compare`` show the results. Only ``wake_ups`` looks below the
public API, and says why.
"""
