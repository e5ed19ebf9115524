"""`make bench`: lualock beside every rival that can be installed, over public APIs only.

``rivals/`` has one small adapter each, ``scenarios`` lists what is measured (a module each),
``setting`` runs rounds and writes down who breaks, ``crowd`` makes many processes want one lock;
``report``, ``plots`` and ``compare`` show it. ``wake_ups`` alone looks below the public API, and
says why.
"""
