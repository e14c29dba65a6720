"""Ranks of a decode group, as processes: ``python -m tests.support.group_ranks DIRECTORY SOCKET,SOCKET,...``

One rank per socket. Each wants the same rooms, then takes steps at a pace of its own until every room was admitted or
failed, and writes what each step gave it to DIRECTORY/RANK.json. DIRECTORY/RANK.admitted is there from its first room.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import torch.distributed as dist

import etcd_pd
from etcd_pd.sglang.torch_group import admit

INSTANCE, ROOMS = "prefill-0", range(1, 82)


def play(rank: int, size: int, socket_path: str, directory: Path) -> None:
    """One rank."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=size)
    pace, steps, open_rooms = random.Random(rank), [], set(ROOMS)
    (directory / f"{rank}.ready").touch()
    with etcd_pd.connect(socket_path) as client:
        late = list(ROOMS)
        while open_rooms:
            for room in late[:20]:  # requests arrive over time, at all ranks of the group in the same step
                client.decode.want(INSTANCE, room)
            del late[:20]
            time.sleep(pace.random() * 0.03)
            client.decode.poll()
            time.sleep(pace.random() * 0.03)
            found = admit(client.decode)
            if found.admitted:
                (directory / f"{rank}.admitted").touch()
            steps.append([[(a.room, a.dp_rank) for a in found.admitted], [(e.room, str(e)) for e in found.failed]])
            open_rooms -= {a.room for a in found.admitted} | {e.room for e in found.failed}
    dist.destroy_process_group()
    (directory / f"{rank}.json").write_text(json.dumps(steps))


def main(directory: str, sockets: str) -> int:
    """Fork a process per rank, for one import of torch; 0 when all of them came to their end."""
    paths, children = sockets.split(","), []
    for rank, path in enumerate(paths):
        child = os.fork()
        if child == 0:
            play(rank, len(paths), path, Path(directory))
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
