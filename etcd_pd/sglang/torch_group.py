"""One answer for all ranks of a decode group: they act upon rooms up to a revision that all of them have seen.

Tensor-parallel ranks that each admit what they happen to know take different steps and hang in the next collective.
Here the group agrees on the smallest of its ranks' revisions and the largest of their floors, in one all-reduce.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..client import Admission, Decode


def agree(revision: int, floor: int, group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """The smallest of the ranks' revisions and the largest of their floors; every rank calls it in the same step.

    Args:
        revision: this rank's own, ``decode.revision``; 0 where it does not know, which holds the group back.
        floor: this rank's own, ``decode.floor``.
        group: the ranks that must agree; None: all. Its backend must reduce integers on the CPU, as gloo does.
    """
    smallest = torch.tensor([revision, -floor], dtype=torch.int64)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=group)
    return int(smallest[0]), -int(smallest[1])


def admit(decode: Decode, group: dist.ProcessGroup | None = None) -> Admission:
    """What every rank of the group may act upon in this step: the same on all of them, in the same order.

    All ranks must want the same rooms. An engine that runs a collective in each step anyway sends ``decode.revision``
    and ``decode.floor`` along with it and calls ``decode.admit()`` itself.
    """
    return decode.admit(*agree(decode.revision, decode.floor, group))
