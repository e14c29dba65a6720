"""Pure decisions: no I/O, no threads, no clock (``now`` is an argument), no logging, no asyncio.

Every method is total: what went wrong outside comes in as data and goes out as a decision.
"""
