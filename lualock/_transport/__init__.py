"""Layer 3: the drivers, the only code that touches a client.

``endpoint`` knows where the server is and makes connections; ``wire`` packs calls and says what an
error of the client means; ``blocking`` and ``asynchronous`` run a protocol's steps.
"""
