"""The same experiment with the real stack: SGLang's router and load generator, this project's agents, etcd and engine.

Only the computation is emulated (lock-step forward passes of stated length), and all of time is scaled: rates are
multiplied and costs divided by one factor, and TTFTs multiplied by it again. The rooms that the router drew are read
from the prefill instance's log, so that the simulation can be asked what it expects for exactly that run.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from etcd_pd.reference.balance import create
from etcd_pd.reference.engine import tiny
from etcd_pd.reference.local.tether import tethered
from etcd_pd.reference.stack.plan import PREFILL
from etcd_pd.reference.stack.settings import StackSettings
from etcd_pd.reference.stack.stack import Stack

from . import published
from .cost import CostModel
from .figures import RANGE_RATIOS, Row, mean_ms, p99_ms, spell
from .simulation import simulate
from .workload import make_workload

#: By workload, how many times faster than published everything is: a run of 200 prompts takes about 20 s.
TIME_SCALES = {"equal": 4.0, "mixed": 2.5}
#: Decode steps per second; published: the four tokens after the first took 7 ms together.
_DECODE_STEPS = 2000.0
#: Longest time that the load generator may take for one run, seconds.
_RUN_SECONDS = 120.0
_ACCEPTED = re.compile(r"accepted room=(\d+) tokens=(\d+)")


@dataclass(frozen=True)
class Case:
    """What is run for each seed.

    Attributes:
        policy: the prefill instance's.
        workload: a name of :data:`.figures.RANGE_RATIOS`.
        rate: requests per second before scaling.
    """

    policy: str
    workload: str
    rate: float

    @property
    def time_scale(self) -> float:
        """How many times faster than published it runs."""
        return TIME_SCALES[self.workload]


def stack_rows(
    model: CostModel, cases: Sequence[Case], seeds: Sequence[int], prompts: int = published.PROMPTS
) -> Iterator[Row]:
    """A row for each case and seed, as they are measured; one start of the stack for each policy and time scale."""
    for policy, scale in dict.fromkeys((case.policy, case.time_scale) for case in cases):
        running = _running(policy, engine_environ(model, scale))
        with running as stack, tempfile.TemporaryDirectory(prefix="etcd-pd-ttft-") as directory:
            for case in (case for case in cases if (case.policy, case.time_scale) == (policy, scale)):
                for seed in seeds:
                    yield _run(stack, Path(directory), model, case, seed, prompts)


@contextmanager
def _running(policy: str, environ: dict[str, str]) -> Iterator[Stack]:
    before = dict(os.environ)
    os.environ.update(environ)
    try:
        settings = StackSettings(policy=policy, dp_size=published.DP_SIZE, decode_instances=1)
        stack = Stack(settings, lambda what: nullcontext())
        try:
            stack.start()
            yield stack
        finally:
            left = stack.stop()
        stack.remove_logs()
        if left:
            raise RuntimeError(f"left behind in etcd: {left}")
    finally:
        os.environ.clear()
        os.environ.update(before)


def engine_environ(model: CostModel, time_scale: float) -> dict[str, str]:
    """The engine's settings: what a pass costs, in scaled time."""
    cost = model.pass_cost()
    settings = {
        "compute": "emulated",
        "emulated_lock_step": "true",
        "emulated_pass_tokens": published.PASS_TOKENS,
        "emulated_prefill_tokens_per_second": time_scale / cost.longest,
        "emulated_shared_tokens_per_second": time_scale / cost.shared,
        "emulated_decode_steps_per_second": _DECODE_STEPS,
        "decode_arrival_seconds": 60,  # hundreds of requests are sent at once
        "log_level": "debug",
    }
    return {f"ETCD_PD_{name.upper()}": str(value) for name, value in settings.items()}


def _run(stack: Stack, directory: Path, model: CostModel, case: Case, seed: int, prompts: int) -> Row:
    log = stack.run_dir / f"{PREFILL}.log"
    read = log.stat().st_size
    found = _generate(stack.addresses.router, directory, case, seed, prompts)
    ttfts = [value * case.time_scale for value in found["ttfts"]]
    accepted = _ACCEPTED.findall(log.read_bytes()[read:].decode())[1:]  # the first one warmed up
    failures = [str(failure) for failure in stack.take_failures()]
    if failures or any(found["errors"]) or len(accepted) != prompts or min(ttfts) <= 0:
        raise RuntimeError(
            f"{case}: {len(accepted)} of {prompts} requests reached a rank; {failures or found['errors']}"
        )
    expected = _expected(model, case, seed, accepted)
    return {
        "kind": "stack",
        "compute": "emulated",
        "workload": case.workload,
        "rate": spell(case.rate),
        "policy": case.policy,
        "seed": seed,
        "prompts": prompts,
        "time_scale": case.time_scale,
        "mean_ttft_ms": round(mean_ms(ttfts), 1),
        "p99_ttft_ms": round(p99_ms(ttfts), 1),
        "requests_per_second": round(found["request_throughput"] / case.time_scale, 3),
        "simulated_mean_ttft_ms": round(mean_ms(expected), 1),
        "simulated_p99_ttft_ms": round(p99_ms(expected), 1),
    }


def _expected(model: CostModel, case: Case, seed: int, accepted: Iterable[tuple[str, str]]) -> Sequence[float]:
    """The simulation's TTFTs for the rooms that the router drew, in the order in which ranks took them."""
    rooms = tuple(int(room) for room, _ in accepted)
    workload = make_workload(seed, case.rate, RANGE_RATIOS[case.workload], count=len(rooms))
    return simulate(replace(workload, rooms=rooms), create(case.policy), model.pass_cost()).ttfts


def _generate(router: str, directory: Path, case: Case, seed: int, prompts: int) -> dict[str, Any]:
    """One run of SGLang's load generator; what it says of it."""
    tokenizer, output = tiny.ensure(), directory / "result.jsonl"
    output.unlink(missing_ok=True)
    url = urlsplit(router)
    options = {
        "--backend": "sglang",
        "--model": tokenizer,
        "--host": url.hostname,
        "--port": url.port,
        "--dataset-name": "random",
        "--dataset-path": _conversations(directory),
        "--random-input-len": published.PROMPT_TOKENS,
        "--random-output-len": published.OUTPUT_TOKENS,
        "--random-range-ratio": RANGE_RATIOS[case.workload],
        "--request-rate": case.rate * case.time_scale,
        "--num-prompts": prompts,
        "--max-concurrency": published.PROMPTS,
        "--seed": seed,
        "--output-file": output,
    }
    command = [sys.executable, "-m", "benchmarks.ttft.generator", "--pd-separated", "--tokenize-prompt"]
    command += ["--output-details", "--disable-tqdm"]
    command += [str(word) for option in options.items() for word in option]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(tethered(command), env=offline, capture_output=True, text=True, timeout=_RUN_SECONDS)
    if done.returncode or not output.exists():
        raise RuntimeError(f"the load generator ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def _conversations(directory: Path) -> Path:
    """Synthetic conversations in the form of the generator's usual data set: nothing is downloaded."""
    path = directory / "conversations.json"
    if not path.exists():
        draw = random.Random(0)
        turns = [[" ".join(str(draw.randrange(10**6)) for _ in range(64)), "yes"] for _ in range(2 * published.PROMPTS)]
        path.write_text(json.dumps([{"conversations": [{"value": turn} for turn in pair]} for pair in turns]))
    return path
