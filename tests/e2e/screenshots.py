"""Pictures of the dashboard for the docs, of a real stack under load: ``make screenshots``."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.e2e.running import RunningStack
from tests.e2e.scenes import busy_stack, dashboard, etcd_pid, wait_for_rooms
from tests.support.chromium import Page

#: A wide screen, and a phone, in CSS pixels.
WIDE, NARROW = 1600, 390
#: How long the page follows before its picture is taken, and after something broke, seconds: its lines take time.
HEALTHY_SECONDS, BROKEN_SECONDS = 40.0, 15.0
#: Of a picture's palette.
COLOURS = 256
DOCS = Path(__file__).parents[2] / "docs"


class Scene(NamedTuple):
    """What is done to the stack, what puts it right again, and how the page must look meanwhile (JavaScript)."""

    breaks: Callable[[RunningStack], None]
    mends: Callable[[RunningStack], None]
    shown: str


def _nothing(stack: RunningStack) -> None:
    pass


def _kill_rank(stack: RunningStack) -> None:
    os.kill(stack.rank_pids()[2], signal.SIGKILL)


def _kill_agent(stack: RunningStack) -> None:
    os.kill(stack.pid("agent-prefill-0"), signal.SIGKILL)


def _freeze_etcd(stack: RunningStack) -> None:
    os.kill(etcd_pid(stack), signal.SIGSTOP)


def _thaw_etcd(stack: RunningStack) -> None:
    os.kill(etcd_pid(stack), signal.SIGCONT)


_WRONG = "document.getElementById('verdict').className === 'bad'"
SCENES = {
    "healthy": Scene(_nothing, _nothing, "document.getElementById('verdict').className === 'good'"),
    "rank-killed": Scene(_kill_rank, _nothing, _WRONG),
    "etcd-frozen": Scene(_freeze_etcd, _thaw_etcd, f"{_WRONG} && document.body.className === 'old'"),
    "agent-dead": Scene(_kill_agent, _nothing, _WRONG),
}


async def _take(url: str, stack: RunningStack, name: str, directory: Path, widths: list[int]) -> None:
    scene = SCENES[name]
    async with Page() as page:
        await page.size(widths[0], 1000)
        await page.open(url)
        await page.until(SCENES["healthy"].shown)
        await asyncio.sleep(HEALTHY_SECONDS)
        with _broken(scene, stack):
            await page.until(scene.shown)
            await asyncio.sleep(BROKEN_SECONDS if scene.breaks is not _nothing else 0)
            for width in widths:
                await page.size(width, 1000)
                await page.size(width, int(await page.value("document.documentElement.scrollHeight")))
                place = directory / f"dashboard-{name}{'' if width == WIDE else f'-{width}'}.png"
                _save(await page.picture(), place)
                print(f"{place}: {place.stat().st_size / 1000:.0f} kB")


def _save(picture: bytes, place: Path) -> None:
    """With a palette, which is half the size."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(place, optimize=True)


@contextmanager
def _broken(scene: Scene, stack: RunningStack) -> Iterator[None]:
    scene.breaks(stack)
    try:
        yield
    finally:
        scene.mends(stack)


def main(arguments: list[str]) -> None:
    """Take the pictures that are asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.screenshots", description="Pictures of the dashboard.")
    parser.add_argument("--scene", action="append", choices=list(SCENES), help="this one, instead of all")
    parser.add_argument("--directory", type=Path, default=DOCS)
    parser.add_argument("--narrow", action="store_true", help="also as a phone shows them")
    options = parser.parse_args(arguments)
    for name in options.scene or SCENES:
        with busy_stack() as stack, dashboard(stack) as url:
            wait_for_rooms(stack)
            asyncio.run(_take(url, stack, name, options.directory, [WIDE, NARROW] if options.narrow else [WIDE]))


if __name__ == "__main__":
    main(sys.argv[1:])
