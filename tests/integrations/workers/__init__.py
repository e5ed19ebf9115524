"""Real worker processes of seven job systems, on one server, and what they record.

``tasks`` are the jobs, written once for all systems; ``apps`` has a small program of each system
that runs them; ``producer`` is a process that enqueues; ``fleet`` starts all these, kills and ends
them; ``leash`` ends them if the test's process cannot; ``diary`` is what they write and the tests
read.
"""
