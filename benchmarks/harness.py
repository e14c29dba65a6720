"""What all benchmarks share: the machine's description, statistics, processes, result files, plots.

A result file, ``benchmarks/results/NAME.json``, holds rows and what they were measured on, and no date: a second run
differs where its figures do. Times are measured with ``time.monotonic()``, which all processes of a machine share.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

import etcd_pd
from etcd_pd.reference.local.embedded import EmbeddedEtcd, find_etcd
from etcd_pd.reference.local.tether import tethered

ROOT = Path(__file__).resolve().parents[1]
#: Figures that are kept, and what docs/ is generated from.
RESULTS = ROOT / "benchmarks" / "results"
#: Everything else that a run writes.
SCRATCH = ROOT / "build" / "bench"
#: SGLang's own environment (``scripts/sglang-env``).
SGLANG_PYTHON = ROOT / ".venv-sglang" / "bin" / "python"
#: Names the directory under which etcd's data lies; a memory file system there means that nothing is durable.
DATA_VARIABLE = "BENCH_DATA"
#: How long a process may take to become ready, and to end once it was told to, seconds.
READY_SECONDS, END_SECONDS = 60.0, 10.0

Row = dict[str, Any]


# --- what was measured, and with what


def machine() -> dict[str, Any]:
    """The machine, and the file system that etcd's data lies on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "etcd_data": _file_system(data_directory()),
    }


def versions() -> dict[str, str]:
    """Versions of everything that takes part; SGLang's only where its environment exists."""
    found = {"etcd_pd": etcd_pd.__version__, "python": platform.python_version(), "etcd": _etcd_version()}
    for package in ("grpcio", "protobuf", "uvloop"):
        found[package] = importlib.metadata.version(package)
    for info in (ROOT / ".venv-sglang" / "lib").glob("python3*/site-packages/sglang-*.dist-info"):
        found["sglang"] = info.name.removeprefix("sglang-").removesuffix(".dist-info")
    return found


def _cpu_model() -> str:
    named = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return named.group(1) if named else platform.machine()


def _file_system(path: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
    return f"{kind} (in memory: nothing is durable)" if kind in ("tmpfs", "ramfs") else f"{kind}, fsync on"


def _etcd_version() -> str:
    answer = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, timeout=10, check=True)
    named = re.search(r"etcd Version: (\S+)", answer.stdout)
    return named.group(1) if named else "unknown"


# --- statistics


def percentiles(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """``n``, ``p50``, ``p99`` and ``p999`` (nearest rank); None in place of what no value stands for."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        return round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)], digits) if ordered else None

    return {"n": len(ordered), "p50": at(0.5), "p99": at(0.99), "p999": at(0.999)}


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """``median``, ``min`` and ``max`` of one figure a round."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """How often the one is the other, a round at a time, with its spread over the rounds.

    Raises:
        ValueError: not the same number of rounds, or none.
    """
    found = [above / below for above, below in zip(numerators, denominators, strict=True) if below]
    return spread(found, 2)


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes and of all that descend from them, user and system, so far."""
    total = 0.0
    for pid in pids:
        try:
            for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
                used = process.cpu_times()
                total += used.user + used.system
        except psutil.NoSuchProcess:
            pass
    return total


def memory_bytes(pid: int) -> int:
    """Proportional resident memory of a process and its descendants, bytes."""
    parent = psutil.Process(pid)
    return sum(int(process.memory_full_info().pss) for process in (parent, *parent.children(recursive=True)))


# --- results


def save(name: str, rows: Sequence[Row], directory: Path = RESULTS, **more: Any) -> Path:
    """Write a result file; ``more`` stands beside the rows."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    found = {"name": name, "machine": machine(), "versions": versions(), **more, "rows": list(rows)}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def load(name: str, directory: Path = RESULTS) -> dict[str, Any] | None:
    """A result file's content, None where it was not measured."""
    path = directory / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


# --- processes


def data_directory() -> Path:
    """Where etcd's data lies: ``$BENCH_DATA``, else under build/."""
    return Path(os.environ.get(DATA_VARIABLE) or SCRATCH / "data").resolve()


@contextmanager
def etcd_on_disk(data: Path | None = None) -> Iterator[EmbeddedEtcd]:
    """etcd of one member that syncs every write to the disk under ``data``, None: data_directory(); gone afterwards."""
    home = data or data_directory()
    home.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="etcd-", dir=home))
    try:
        with EmbeddedEtcd.start(data_dir=directory) as etcd:
            yield etcd
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Worker:
    """A process that plays one part of a run: ``python -m MODULE CONFIG``, whose main is :func:`play`.

    Args:
        module: what to run, such as ``benchmarks.engine``.
        config: what it is told, as JSON.
        python: the interpreter; None: this one.
        environ: variables beside this process's own.
    """

    def __init__(
        self, module: str, config: dict[str, Any], python: Path | None = None, environ: dict[str, str] | None = None
    ) -> None:
        command = [str(python or sys.executable), "-m", module, json.dumps(config)]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(tethered(command), env=variables, cwd=ROOT, text=True, **pipes)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin and self._process.stdout
        with self._process.stdout:
            self._process.stdin.close()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def say(self, message: Any) -> None:
        """Tell it to do something, as a line of JSON; it answers with a result."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """What it says next: first ``"ready"``, then a result for each message.

        Raises:
            RuntimeError: it ended instead; its own stderr tells why.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r:.300} ended with status {self._process.wait()}")
        return json.loads(line)


def play(set_up: Callable[[dict[str, Any]], Callable[[Any], Any]]) -> None:
    """A worker's main: set up, say so, then answer each message with what ``set_up(config)(message)`` returns."""
    answers, sys.stdout = sys.stdout, sys.stderr
    run = set_up(json.loads(sys.argv[1]))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


@contextmanager
def spinners(count: int) -> Iterator[list[int]]:
    """So many interpreters that do nothing but spin, as a busy scheduler's does; their process ids."""
    command = tethered([sys.executable, "-c", "while True: pass"])
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


# --- plots


def new_figure(columns: int = 1, rows: int = 1, width: float = 8.0, height: float = 3.6) -> tuple[Any, list[Any]]:
    """A matplotlib figure and its axes, row by row, in the one style of docs/."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # the same figures are the same bytes: no random ids, no date, text as text
    plt.rcParams.update({"svg.hashsalt": "etcd_pd", "svg.fonttype": "none", "font.size": 9, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def save_svg(figure: Any, path: Path) -> None:
    """Write a figure as SVG, the same bytes for the same figure, and forget it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(figure)
    # matplotlib leaves blanks at the ends of lines, which tools take for mistakes
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
