"""What SGLang pull request 14726 published, and how it was measured."""

from __future__ import annotations

import math

#: Mean TTFT in milliseconds by request rate (requests per second) where the rank follows the room.
FOLLOWS_ROOM = {1.0: 1860.30, 2.0: 3896.73, 2.6: 5976.88, 3.2: 10446.72, 4.0: 15599.93, math.inf: 37264.81}
#: The same where the rank is registered, so that the prefill instance could balance (``round_robin``).
BALANCED = {1.0: 1432.17, 2.0: 2669.39, 2.6: 3854.59, 3.2: 4816.37, 4.0: 12293.58, math.inf: 37184.89}
#: P99 of TTFT in milliseconds at 3.2 requests per second, the only ones published: following the room, balanced.
P99_AT_3_2 = (14397.0, 7569.0)
#: Requests per second that were served at 3.2: following the room, balanced.
THROUGHPUT_AT_3_2 = (3.09, 3.13)
RATES = tuple(FOLLOWS_ROOM)

PROMPTS = 200
PROMPT_TOKENS = 3500
OUTPUT_TOKENS = 5
DP_SIZE = 4
#: ``--seed`` of SGLang's load generator where none is given, as it was then (since changed to 42).
SEED = 1
#: ``--max-prefill-tokens`` of SGLang where none is given: the bound of a rank's part of a forward pass, whole prompts.
#: The other bound, ``--chunked-prefill-size`` 160000 divided by the ranks, is 40000 and so never reached.
PASS_TOKENS = 16384


def reduction(follows: float, other: float) -> float:
    """By how many percent a TTFT is below the one that follows the room."""
    return 100 * (1 - other / follows)
