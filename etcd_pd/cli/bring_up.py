"""``etcd-pd up`` from start to end: start the stack, use it or wait, stop it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..errors import EtcdPDError
from ..reference.local.local_cell import LocalCell, claim_local_cell
from ..reference.stack.demo import compare_with_reference, find_problems, make_prompts, send_all
from ..reference.stack.settings import StackSettings
from ..reference.stack.stack import Stack
from .console import make_console
from .report import load_table, request_table, verdict, what_to_try
from .stopping import INTERRUPTED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: What another terminal reads of this one.
COMMAND = "etcd-pd up"
_LOOK_SECONDS = 0.3


def bring_up(settings: StackSettings, prompts: int) -> int:
    """Start the stack; send ``prompts`` through it, or with none wait for Ctrl-C; stop it.

    Returns:
        0 if all went well.

    Raises:
        ConfigError: something is missing on this machine, or this user has a stack already that waits for Ctrl-C.
    """
    if prompts:
        return _run(settings, prompts, lambda cell: None)
    with claim_local_cell(COMMAND) as publish:
        return _run(settings, 0, publish)


def _run(settings: StackSettings, prompts: int, publish: Callable[[LocalCell], None]) -> int:
    console = make_console()
    for signum in STOP_SIGNALS:
        signal.signal(signum, _interrupt)
    stack, status = Stack(settings, lambda what: _waiting(console, what)), INTERRUPTED
    try:
        stack.start()
        at = stack.addresses
        publish(LocalCell(COMMAND, os.getpid(), at.etcd, at.root, at.sockets))
        if stack.warning:
            console.print(stack.warning, style="yellow", markup=False)
        status = _demo(stack, prompts, console) if prompts else _wait(stack, console)
    except KeyboardInterrupt:
        console.print("interrupted")
    except EtcdPDError as error:
        status = 1
        console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
    finally:
        # from here on every wait has a deadline of its own
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        status = _stop(stack, console) or status
    if status == 1:
        console.print(f"The logs are in {stack.run_dir}.", markup=False, soft_wrap=True)
    else:
        stack.remove_logs()
    return status


def _demo(stack: Stack, count: int, console: Console) -> int:
    prompts = make_prompts(count)
    with _progress(console) as progress:
        task = progress.add_task(f"{count} prompts through the router", total=count)
        outcome = asyncio.run(send_all(stack.addresses, prompts, lambda: progress.advance(task)))
        task = progress.add_task("the same without disaggregation", total=len(outcome.answers))
        answers = [outcome.answers[number] for number in sorted(outcome.answers)]
        comparison = compare_with_reference(stack.settings.model_path, answers, lambda: progress.advance(task))
    problems = find_problems(outcome) + [str(failure) for failure in stack.take_failures()]
    console.print(request_table(outcome), load_table(outcome, stack.settings.dp_size))
    console.print(verdict(outcome, comparison, problems))
    return 0 if comparison.equal == count and not problems else 1


def _wait(stack: Stack, console: Console) -> int:
    lines = what_to_try(stack.addresses, tiny=not stack.settings.model_path)
    # lines to copy must not be broken
    for text in (
        f"\nThe stack is up. In another terminal, try:\n\n{lines}\n",
        f"Logs and stack.json are in {stack.run_dir}. Ctrl-C stops everything.",
    ):
        console.print(text, markup=False, soft_wrap=True)
    try:
        while True:
            for failure in stack.take_failures():
                console.print(f"{failure}\nThe others go on.", style="red", markup=False, soft_wrap=True)
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        return 0


def _stop(stack: Stack, console: Console) -> int:
    with console.status("stopping the router, decode, prefill, the agents and etcd"):
        keys_left = stack.stop()
    for key in keys_left:
        console.print(f"left behind in etcd: {key}", style="red", markup=False)
    console.print("stopped")
    return 1 if keys_left else 0


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _waiting(console: Console, what: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(f"waiting for {what}"):
        yield
    console.print(f"{time.monotonic() - started:6.1f} s  {what}", markup=False)


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
