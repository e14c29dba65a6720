"""Pure decisions, events in and effects out: no I/O, threads, clock (``now`` is an argument), logging or asyncio.

Every method is total: what went wrong outside comes in as data and goes out as a decision.
"""
