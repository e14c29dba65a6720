"""How busy each resource of a cell is, from the measured costs alone; and what to do where one of them is too busy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from ..harness import Row
from .costs import Costs

#: etcd_pd's default batch_max_rooms.
MAX_BATCH = 120


@dataclass(frozen=True)
class Hardware:
    """What was not measured but is assumed; written into the results and onto the page.

    Attributes:
        etcd_cores: cores of the node that etcd has for itself, each as fast as one of the machine that was measured.
        gigabits: of that node's network, a second.
        proxy_cores: what a proxy may use of its node.
        agent_cores: an agent is one Python process, which uses no more.
        agents_per_node: decode agents on one node, which would share a proxy.
        decodes_per_prefill: decode agents for each prefill agent.
        planned: the share of a resource that a plan may use.
        patience: seconds that a transaction may take before the registry counts as too slow. Meanwhile rooms queue for
            the next one, so that a busy cell writes fewer and larger ones than a quiet one.
    """

    etcd_cores: float = 8
    gigabits: float = 10
    proxy_cores: float = 2
    agent_cores: float = 1
    agents_per_node: int = 8
    decodes_per_prefill: int = 4
    planned: float = 0.6
    patience: float = 0.02


@dataclass(frozen=True)
class Cell:
    """Agents that share one etcd, and the rooms among them.

    Attributes:
        rooms: a second, all of them together.
        decodes, prefills: agents.
        proxies: one on each node, between its decode agents and etcd.
        prefills_watch: prefill agents hear of all rooms; False: they are ``prefill_only``, as the chart's.
    """

    rooms: float
    decodes: float
    prefills: float
    proxies: bool = False
    prefills_watch: bool = True


def cell(rooms: float, decodes: float, hardware: Hardware, proxies: bool = False) -> Cell:
    """A cell with as many prefill agents as the hardware's ratio says, at least one."""
    return Cell(rooms, decodes, max(1.0, decodes / hardware.decodes_per_prefill), proxies)


@dataclass(frozen=True)
class Load:
    """What a cell does every second.

    Attributes:
        txns: transactions, and so messages to each watcher.
        writes: puts and deletes, and so events for each watcher.
        watchers: watches at etcd.
        behind: agents behind one proxy; 0 where there is none.
    """

    txns: float
    writes: float
    watchers: float
    behind: float

    @property
    def batch(self) -> float:
        """Writes a transaction."""
        return self.writes / self.txns if self.txns else 1.0


def load(at: Cell, costs: Costs, hardware: Hardware) -> Load:
    """What this cell does: each room is a put and a delete, batched as one prefill agent's were when measured.

    Where that makes more transactions than planned of those that etcd can do, agents wait for theirs and fill them.
    """
    writes = 2 * at.rooms
    txns = writes / costs.batch(writes / at.prefills) if writes else 0.0
    txns = max(min(txns, hardware.planned * costs.most_commits), writes / MAX_BATCH)
    behind = min(float(hardware.agents_per_node), at.decodes) if at.proxies else 0.0
    watchers = (at.prefills if at.prefills_watch else 0.0) + (at.decodes / behind if behind else at.decodes)
    return Load(txns, writes, watchers, behind)


def patient(at: Cell, hardware: Hardware) -> float:
    """Fewest transactions a second: each prefill agent has one in flight, for as long as patience lasts."""
    writes = 2 * at.rooms
    return max(min(writes, at.prefills / hardware.patience), writes / MAX_BATCH)


def settled(at: Cell, costs: Costs, hardware: Hardware, share: float | None = None) -> dict[str, float]:
    """As utilisation(); where something would be busier than ``share``, None: planned, with transactions filled."""
    quiet = utilisation(at, costs, hardware)
    if busiest(quiet)[1] <= (share or hardware.planned):
        return quiet
    return utilisation(at, costs, hardware, min(patient(at, hardware), load(at, costs, hardware).txns))


def utilisation(at: Cell, costs: Costs, hardware: Hardware, at_txns: float | None = None) -> dict[str, float]:
    """The share of each resource in use: above 1, it cannot be done. Transactions a second: None, as when measured."""
    doing = load(at, costs, hardware)
    if at_txns is not None:
        doing = replace(doing, txns=at_txns)
    txns, writes, watchers = doing.txns, doing.writes, doing.watchers
    fan_out = watchers * (txns * costs.etcd_message + writes * costs.etcd_event)
    # a keepalive goes through a proxy to etcd all the same
    etcd = costs.etcd_base + (at.decodes + at.prefills) * costs.etcd_agent + fan_out
    writing = costs.commit(txns) + max(writes - txns, 0.0) * costs.etcd_write
    sent = watchers * (txns * costs.bytes_message + writes * costs.bytes_event)
    sent += txns * costs.bytes_txn + writes * costs.bytes_write
    hears = costs.agent_idle + txns * costs.agent_message + writes * costs.agent_event
    writer = txns / at.prefills * costs.writer_txn + at.rooms / at.prefills * costs.writer_room
    found = {
        "etcd": (etcd + writing) / hardware.etcd_cores,
        "etcd's log": txns / costs.most_commits + max(writes - txns, 0.0) * costs.etcd_write,  # one after the other
        "network": sent * 8 / (hardware.gigabits * 1e9),
        "decode agent": (hears + at.rooms / at.decodes * costs.agent_want) / hardware.agent_cores,
        "prefill agent": ((hears if at.prefills_watch else costs.agent_idle) + writer) / hardware.agent_cores,
    }
    if doing.behind:
        per_agent = txns * costs.proxy_message + writes * costs.proxy_event
        proxy = costs.proxy_base + txns * costs.proxy_up + doing.behind * per_agent
        found["proxy"] = proxy / hardware.proxy_cores
    return found


def busiest(shares: dict[str, float]) -> tuple[str, float]:
    """The resource that saturates first, and its share."""
    return max(shares.items(), key=lambda item: item[1])


def fits(at: Cell, costs: Costs, hardware: Hardware) -> bool:
    """Whether nothing is busier than planned."""
    return busiest(settled(at, costs, hardware))[1] <= hardware.planned


def largest(rooms: float, proxies: bool, costs: Costs, hardware: Hardware, share: float) -> int:
    """Most decode agents at which no resource is busier than ``share``; 0 where no number is right.

    Rooms a second stay, whoever takes them. Looked for up to a million, and to one part in a hundred.
    """

    def carried(decodes: float) -> bool:
        return busiest(settled(cell(rooms, decodes, hardware, proxies), costs, hardware, share))[1] <= share

    # from above: with very few agents it may be these that are too busy, and more of them carry it
    low, high = 2.0**20, 2.0**21
    while low >= 1 and not carried(low):
        low, high = low / 2, low
    if low < 1:
        return 0
    while high - low > max(low / 100, 0.5):
        middle = (low + high) / 2
        low, high = (middle, high) if carried(middle) else (low, middle)
    return math.floor(low)


def cells_needed(rooms: float, decodes: float, proxies: bool, costs: Costs, hardware: Hardware) -> int | None:
    """Fewest cells of equal size, each with an etcd, that carry it; None where cells of one decode agent do not."""
    count = 1
    while count <= decodes:
        if fits(cell(rooms / count, decodes / count, hardware, proxies), costs, hardware):
            return count
        count += max(1, count // 50)
    return None


@dataclass(frozen=True)
class Advice:
    """What to do for so many rooms a second and decode agents.

    Attributes:
        first: the resource that would be too busy with one etcd and nothing else, and how busy it would be.
        cells: how many cells with an etcd each, without proxies; None where no number is enough.
        cells_with_proxies: the same with a proxy on each node.
    """

    rooms: float
    decodes: int
    first: str
    share: float
    cells: int | None
    cells_with_proxies: int | None

    @property
    def rule(self) -> str:
        """The least work for the owner: one etcd, then proxies, then cells; proxies in cells where they save half."""
        if self.cells == 1:
            return "one etcd"
        if self.cells_with_proxies == 1:
            return "proxies"
        if self.cells is None and self.cells_with_proxies is None:
            return "neither"
        if self.cells is None or (self.cells_with_proxies and self.cells_with_proxies * 2 <= self.cells):
            return f"{self.cells_with_proxies} cells with proxies"
        return f"{self.cells} cells"


def advise(rooms: float, decodes: int, costs: Costs, hardware: Hardware) -> Advice:
    """The planning rule for one point."""
    first, share = busiest(settled(cell(rooms, decodes, hardware), costs, hardware))
    direct = cells_needed(rooms, decodes, False, costs, hardware)
    proxied = cells_needed(rooms, decodes, True, costs, hardware)
    return Advice(rooms, decodes, first, share, direct, proxied)


def advice_rows(rates: Iterable[float], counts: Iterable[int], costs: Costs, hardware: Hardware) -> list[Row]:
    """The planning table."""
    counts = list(counts)
    found = [advise(rate, count, costs, hardware) for rate in rates for count in counts]
    return [{"sweep": "plan", **asdict(advice), "rule": advice.rule} for advice in found]


def shared(hardware: Hardware, cores: float) -> Hardware:
    """The hardware where etcd, agents and all share so many cores: the machine that was measured."""
    return replace(hardware, etcd_cores=cores, proxy_cores=cores, agent_cores=cores, gigabits=1000)
