"""Run jobs under their locks in a job system: one module or package for each system.

Each is an extra of its own (``pip install 'lualock[rq]'``). An integration imports its job system
and :mod:`lualock.jobs`. Nothing imports an integration, and no integration imports another.
"""
