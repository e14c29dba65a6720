"""A rank's process as its front sees it, and how all of an instance are started."""

from __future__ import annotations

import logging
import multiprocessing
import uuid
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

from etcd_pd import Client

from .card import model_modules
from .link import RankSpec
from .settings import EngineSettings


class RankProcess:
    """One rank, and what it has said of itself."""

    def __init__(self, dp_rank: int, process: BaseProcess) -> None:
        self.dp_rank = dp_rank
        self.process = process
        self.ready = self.draining = False
        self.alive = self.agent = True
        self.epoch = 0
        self.kv_port = 0

    @property
    def state(self) -> str:
        """What it is doing, the worst first; only one that is ``serving`` takes requests."""
        if not self.alive:
            return "dead"
        if not self.ready:
            return "starting"
        if not self.agent:
            return "without an agent"
        return "draining" if self.draining else "serving"


def start_ranks(
    ranks: list[RankProcess], settings: EngineSettings, model_path: str, connect: Callable[[str], Client], address: str
) -> None:
    """Start every rank's process, and note each in ``ranks`` as soon as it runs. Blocks for some seconds.

    Args:
        ranks: takes them, in order.
        settings: the instance's.
        model_path: its model's directory.
        connect: opens the registry's client in each rank.
        address: ZeroMQ address of the front's socket.
    """
    # the fork server loads the heavy modules once for all ranks, and forks before any thread or device exists
    method = multiprocessing.get_context("forkserver")
    method.set_forkserver_preload(["etcd_pd.reference.engine.rank", *model_modules(model_path)])
    root = logging.getLogger()
    launch_id = str(uuid.uuid4())
    for dp_rank in range(settings.dp_size):
        spec = RankSpec(
            settings=settings,
            dp_rank=dp_rank,
            link=address,
            launch_id=launch_id,
            model_path=model_path,
            connect=connect,
            log_level=root.level,
            log_format=root.handlers[0].formatter if root.handlers else None,
        )
        process = method.Process(target=_run_rank, args=(spec,), name=f"dp{dp_rank}")
        process.start()
        ranks.append(RankProcess(dp_rank, process))


def stop_fork_server() -> None:
    """End the process that ranks were forked from. It would end with this one, but only some time after it."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # there is no public way to wait for it


def _run_rank(spec: RankSpec) -> None:
    # imported here, in the rank: the front itself needs no torch
    from .rank import main

    main(spec)
