"""What a scrape of the agent shows, read off its parts when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import __version__
from ..core.lease import LeaseState
from ..core.watch import WatchState
from ..telemetry.metrics import Metric, counter, counters, counters_by, gauge, gauges, histogram, state
from .certificate import certificate_end
from .etcd_health import ALARMS
from .stats import CONFLICT

if TYPE_CHECKING:
    from .agent import Agent


def families(agent: Agent) -> Iterator[Metric]:
    """Every metric of an agent, all at the same moment."""
    yield gauges("etcd_pd_build_info", "1, with the version of this agent.", ["version"], {(__version__,): 1})
    yield from _rooms(agent)
    yield from _session(agent)
    yield from _watch(agent)
    yield from _engines(agent)
    yield from _etcd(agent)


def _rooms(agent: Agent) -> Iterator[Metric]:
    stats = agent.stats
    # conflicts are there from the start: no increase is seen of a counter that begins above 0
    outcomes = {"Registered": stats.registered, CONFLICT: 0, **stats.rejected}
    yield counters(
        "etcd_pd_registrations_total",
        "Registrations answered, by the answer: Registered or an error.",
        "outcome",
        outcomes,
    )
    yield counter("etcd_pd_wants_total", "Rooms that engines asked the rank of.", stats.wanted)
    ends = {"Resolved": stats.resolved, **stats.ended}
    yield counters("etcd_pd_resolutions_total", "Wants answered, by the answer: Resolved or an error.", "outcome", ends)
    yield histogram(
        "etcd_pd_register_seconds", "From a registration's arrival to its transaction's end.", stats.register_seconds
    )
    yield histogram("etcd_pd_resolve_seconds", "From a want's arrival to its rank.", stats.resolve_seconds)
    yield histogram("etcd_pd_transaction_seconds", "Time of transactions that wrote rooms.", stats.transaction_seconds)
    yield histogram("etcd_pd_batch_rooms", "Rooms in one transaction.", stats.batch_rooms)
    yield gauge("etcd_pd_queue_rooms", "Rooms that wait to be written.", len(agent.book))
    yield gauge("etcd_pd_queue_limit_rooms", "Rooms that may wait before new ones are refused.", agent.queue_limit)
    refs = {local.ref for local in agent.announcer.ranks}
    held: dict[tuple[str, ...], float] = {(ref.instance, str(ref.dp_rank)): agent.book.count(ref) for ref in refs}
    yield gauges(
        "etcd_pd_rank_rooms", "Rooms of a rank of this node, registered or being so.", ["instance", "dp_rank"], held
    )
    yield gauge("etcd_pd_room_leases", "Leases that rooms of this agent hang on.", len(agent.pool))


def _session(agent: Agent) -> Iterator[Metric]:
    session = agent.session
    states = [one.value for one in LeaseState]
    yield state("etcd_pd_session_state", "State of the session's lease.", session.state.value, states)
    yield gauge(
        "etcd_pd_session_lease_remaining_seconds", "Time until the session's lease may end.", session.seconds_left
    )
    yield counter(
        "etcd_pd_session_losses_total", "Session leases that were lost, with every rank here.", session.losses
    )
    yield histogram("etcd_pd_session_renew_seconds", "Time of keepalives.", session.renew_seconds)


def _watch(agent: Agent) -> Iterator[Metric]:
    watcher = agent.watcher
    states = [one.value for one in WatchState]
    yield state("etcd_pd_watch_state", "What the view may be believed.", watcher.state.value, states)
    yield gauge("etcd_pd_watch_revision", "Revision of etcd that the view is at.", agent.view.revision)
    yield gauge("etcd_pd_watch_silence_seconds", "Time since etcd said anything.", watcher.silent_seconds)
    yield counter(
        "etcd_pd_watch_lists_total", "Full lists of the cell; after the first, each one a gap.", watcher.resyncs
    )
    yield gauge("etcd_pd_watch_stale_seconds", "How long the view was not to be relied on.", watcher.stale_seconds)
    yield counters("etcd_pd_watch_stale_total", "Times that the view became stale, by why.", "cause", watcher.causes)
    if watcher.lag is not None:
        yield gauge("etcd_pd_watch_lag_revisions", "Revisions written here that the view has not come to.", watcher.lag)
    if not agent.prefill_only:  # a zero would be read as an empty cell
        yield gauge("etcd_pd_cell_rooms", "Rooms in the cell.", len(agent.view.rooms))


def _engines(agent: Agent) -> Iterator[Metric]:
    server = agent.server
    yield gauge("etcd_pd_engines", "Connected processes.", len(server.connections))
    yield gauge("etcd_pd_waits", "Rooms that engines wait for, or use.", sum(len(c.wants) for c in server.connections))
    yield counter("etcd_pd_socket_received_bytes_total", "Bytes from engines.", server.received_bytes)
    yield counter("etcd_pd_socket_sent_bytes_total", "Bytes to engines.", server.sent_bytes)
    yield counter("etcd_pd_protocol_errors_total", "Engines put out for what they sent.", agent.stats.protocol_errors)
    yield counter("etcd_pd_internal_errors_total", "Packets left unhandled by a bug.", agent.stats.internal_errors)


def _etcd(agent: Agent) -> Iterator[Metric]:
    """No sample where etcd did not say: a zero would be read as all is well."""
    alarms, status = agent.etcd_health.alarms, agent.etcd_health.status
    raised: dict[tuple[str, ...], float] = {} if alarms is None else {(name,): alarms[name] for name in ALARMS}
    yield gauges("etcd_pd_etcd_alarms", "Members of etcd that raised an alarm.", ["alarm"], raised)
    size: dict[tuple[str, ...], float] = {} if status is None else {(): status.db_size}
    yield gauges("etcd_pd_etcd_database_bytes", "Size of the database's file at the member in use.", [], size)
    used: dict[tuple[str, ...], float] = {} if status is None else {(): status.db_size_in_use}
    yield gauges("etcd_pd_etcd_database_in_use_bytes", "What of that file holds data.", [], used)
    counts = agent.store.counts
    errors: dict[tuple[str, ...], float] = {key: count for key, count in counts.errors.items()}
    yield counters_by("etcd_pd_etcd_errors_total", "Calls and streams that failed.", ["op", "error"], errors)
    yield counter("etcd_pd_etcd_authentications_total", "Tokens asked of etcd.", counts.authentications)
    yield counter("etcd_pd_etcd_connections_total", "Connections to etcd that were used.", counts.connections)
    yield gauges("etcd_pd_etcd_endpoint", "1, with the endpoint in use.", ["endpoint"], {(agent.store.endpoint,): 1})
    end = certificate_end(agent.certificate_file)
    ends: dict[tuple[str, ...], float] = {} if end is None else {(): end}
    yield gauges("etcd_pd_certificate_expiry_timestamp_seconds", "When the client certificate for etcd ends.", [], ends)
