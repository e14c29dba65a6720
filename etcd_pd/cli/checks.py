"""What ``etcd-pd doctor`` looks at. Every check ends in a finding, never in an error."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..client.visit import visit
from ..config import LOOPBACK
from ..core.keys import Keys
from ..core.records import UPGRADE, Compare, Put, is_outdated, is_refused
from ..errors import (
    AgentUnavailable,
    ConfigError,
    EtcdPDError,
    LeaseNotFound,
    RoomsNotWatched,
    StoreBusy,
    StoreError,
    StoreRejected,
)
from ..kubernetes.round_trip import PREFIX, run as round_trip
from ..store.base import roles_hold
from ..store.tls import handshake
from ..wire.limits import MAX_REVISION, MAX_ROOM
from .etcd_view import ask, ask_members

if TYPE_CHECKING:
    from ..config import EtcdSettings
    from ..store.admin import EtcdAdmin

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
#: What the doctor waits for an agent, and for each step of a round trip, seconds.
PATIENCE_SECONDS = 5.0
#: A certificate with less left than this is worth a warning; chart and etcd-pd certs renew earlier.
CERTIFICATE_DAYS = 7
#: How the finding about roles ends where they are those of the decode side.
DECODE_ROLE = ": the decode role"
#: TTL of the lease that is tried, seconds.
LEASE_SECONDS = 10


@dataclass(frozen=True)
class Finding:
    """One check's result.

    Attributes:
        check: what was looked at.
        status: ``ok``, ``warn`` (works, but look at it), ``fail`` or ``skip`` (another check's failure forbids it).
        text: what was found.
        hint: what to do about it, empty where all is well.
    """

    check: str
    status: str
    text: str
    hint: str = ""


async def check_etcd(settings: EtcdSettings, root: str, instance: str) -> list[Finding]:
    """Everything that concerns etcd."""
    from ..store.admin import EtcdAdmin

    findings = await _endpoints(settings)
    reachable = any(finding.status == OK for finding in findings)
    findings.append(_tls(settings) if reachable else Finding("tls", SKIP, "no endpoint answers"))
    if not reachable:
        names = ("quorum", "alarms", "roles", "lease")
        return findings + [Finding(name, SKIP, "no endpoint answers") for name in names]
    async with EtcdAdmin(settings) as store:
        findings += [
            await _quorum(store, settings),
            await _alarms(store),
            await _roles(store, root, instance),
            await _lease(store),
        ]
    return findings


def check_agent(path: str) -> Finding:
    """Whether the agent's socket is there, ours to use, and answered."""
    check = "agent socket"
    try:
        found = os.lstat(path)
    except OSError as exc:
        hint = "start one: etcd-pd agent, or etcd-pd run -- COMMAND; or name its socket: --socket, ETCD_PD_SOCKET"
        return Finding(check, FAIL, f"{path}: {exc.strerror}", hint)
    if not stat.S_ISSOCK(found.st_mode):
        return Finding(check, FAIL, f"{path} is no socket", "remove it, or choose another --socket")
    mode = f"uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}"
    started = time.monotonic()
    try:
        with visit(path, PATIENCE_SECONDS) as agent:
            welcome = agent.greet()
    except AgentUnavailable as exc:
        hint = f"the socket is there ({mode}): does its agent live, and does it list your uid {os.getuid()}?"
        return Finding(check, FAIL, str(exc), hint)
    text = f"{path}: agent {welcome.agent} answers in {_ms(time.monotonic() - started)} ({mode})"
    if not welcome.synced:
        return Finding(check, WARN, f"{text}, but has not seen etcd yet", "its log says what etcd answered")
    return Finding(check, OK, text)


def check_round_trip(path: str, agent: Finding, roles: Finding) -> Finding:
    """Register rooms at the agent and resolve them at it, by way of etcd; or that half of it which is the agent's."""
    check = "register and resolve"
    if agent.status != OK:
        return Finding(check, SKIP, "needs an agent that has seen etcd")
    if roles.text.endswith(DECODE_ROLE):
        return Finding(check, SKIP, "the decode role registers no rooms; a doctor beside a prefill engine tries it")
    try:
        try:
            return Finding(check, OK, _round_trip(path, path, "there and back"))
        except RoomsNotWatched:
            return Finding(check, OK, _round_trip(path, None, "registered by an agent that resolves none"))
    except (EtcdPDError, LookupError) as exc:
        return Finding(check, FAIL, str(exc), "the agent's log says why")


def _round_trip(prefill: str, decode: str | None, what: str) -> str:
    seconds = round_trip(prefill, decode, PATIENCE_SECONDS, lambda _: None)
    return f"{len(seconds)} rooms {what} as {PREFIX}..., p50 {_ms(statistics.median(seconds))}, max {_ms(max(seconds))}"


async def _endpoints(settings: EtcdSettings) -> list[Finding]:
    return list(await asyncio.gather(*(_endpoint(settings, endpoint) for endpoint in settings.endpoints)))


async def _endpoint(settings: EtcdSettings, endpoint: str) -> Finding:
    check = f"etcd {endpoint}"
    started = time.monotonic()
    found = await ask(settings, endpoint)
    if isinstance(found, str):
        return Finding(check, FAIL, found, _why_unreachable(endpoint))
    size = f"{found.db_size / 1e6:.1f} MB, {found.db_size_in_use / 1e6:.1f} in use"
    text = f"version {found.version}, {size}, answers in {_ms(time.monotonic() - started)}"
    if not found.leader:
        hint = "a majority of members must run and reach each other on their peer ports"
        return Finding(check, FAIL, f"{text}, but sees no leader", hint)
    return Finding(check, OK, text)


def _why_unreachable(endpoint: str) -> str:
    """Name and port first, since they are what is wrong most often."""
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((str(parts.hostname), parts.port or 0), timeout=PATIENCE_SECONDS).close()
    except socket.gaierror:
        return f"the name {parts.hostname} is not known here: check --etcd"
    except OSError as exc:
        return (
            f"nothing to connect to ({exc.strerror or exc}): is etcd up, is the port right, does a firewall forbid it?"
        )
    return "something listens there: is it etcd, and do http:// or https:// and the certificates fit?"


def _tls(settings: EtcdSettings) -> Finding:
    """The endpoint's certificate, as ssl sees it; gRPC's own words on a bad one say little."""
    if not settings.tls:
        if _is_here(settings):
            return Finding("tls", OK, "none, and etcd is on this machine")
        hint = "serve etcd over https:// with client certificates; the Helm chart's etcd.tls does it"
        return Finding("tls", WARN, "none: whoever reaches etcd's port may change which rank holds a room", hint)
    try:
        found = handshake(settings, PATIENCE_SECONDS)
    except ssl.SSLError as exc:
        hint = "did --etcd-ca-file sign both etcd's certificate and --etcd-cert-file, and are both in date?"
        return Finding("tls", FAIL, str(exc), hint)
    except OSError as exc:
        return Finding("tls", FAIL, str(exc), _why_unreachable(settings.endpoints[0]))
    days = (ssl.cert_time_to_seconds(str(found["notAfter"])) - time.time()) / 86400
    client = "client certificate sent" if settings.cert_file else "no client certificate"
    text = f"etcd's certificate is good for {days:.0f} days; {client}"
    if days < CERTIFICATE_DAYS:
        return Finding("tls", WARN, text, "renew it; in Kubernetes the chart's certs job does: did it run?")
    return Finding("tls", OK, text)


def _is_here(settings: EtcdSettings) -> bool:
    return all(urlsplit(endpoint).hostname in LOOPBACK for endpoint in settings.endpoints)


async def _quorum(store: EtcdAdmin, settings: EtcdSettings) -> Finding:
    try:
        members = await store.members()
    except StoreRejected as exc:
        return Finding("quorum", WARN, str(exc), "these credentials may not list members; ask with root's")
    except StoreError as exc:
        hint = "start the members that are down, or mend the network between them; known rooms resolve meanwhile"
        return Finding("quorum", FAIL, f"no quorum answers: {exc}", hint)
    answers = await ask_members(settings, members)
    silent = [member.name or f"{member.id:x}" for member in members if isinstance(answers[member.id], str)]
    text = f"{len(members) - len(silent)} of {len(members)} members answer"
    versions = sorted({found.version for found in answers.values() if not isinstance(found, str)})
    if refused := ", ".join(filter(is_refused, versions)):
        worth = WARN if _is_here(settings) else FAIL
        return Finding("quorum", worth, f"{text}; etcd {refused} is too old for anything but trying", UPGRADE)
    if silent:
        hint = "look at that member's log; where only its advertised URL is out of reach from here, all is well"
        return Finding("quorum", WARN, f"{text}; not {', '.join(silent)}", hint)
    old = ", ".join(filter(is_outdated, versions))
    if old and await roles_hold(store):
        return Finding("quorum", WARN, f"{text}; roles of {old} can be passed by", UPGRADE)
    return Finding("quorum", OK, text)


async def _alarms(store: EtcdAdmin) -> Finding:
    try:
        alarms = await store.alarms()
    except StoreRejected as exc:
        return Finding("alarms", SKIP, f"these credentials may not ask: {exc}")
    except StoreError as exc:
        return Finding("alarms", FAIL, str(exc), "etcd does not answer")
    if not alarms:
        return Finding("alarms", OK, "none")
    names = ", ".join(sorted({alarm for _, alarm in alarms}))
    hint = "NOSPACE: etcd-pd etcd-defragment, as root. CORRUPT: replace that member. See docs/runbook.md"
    return Finding("alarms", FAIL, f"{names} raised: etcd takes no writes, or cannot be believed", hint)


async def _roles(store: EtcdAdmin, root: str, instance: str) -> Finding:
    """What these credentials may do. Nothing is written: etcd checks permission first, and the compare never holds."""
    keys = Keys(root)
    wanted = {
        "rooms": keys.room(instance, MAX_ROOM),
        "prefill": keys.prefill(instance),
        "decode": keys.decode(instance),
        "agents": keys.agent(instance),
    }
    try:
        await store.read([keys.prefix + b"doctor"])
        may = [name for name, key in wanted.items() if await _may_write(store, key)]
    except StoreBusy as exc:
        return Finding("roles", SKIP, f"etcd takes no writes at present: {exc}")
    except StoreError as exc:
        hint = "is --root the cell, and user or certificate the right one? etcd-pd etcd-init makes the roles of a cell"
        return Finding("roles", FAIL, f"may not read {root}: {exc}", hint)
    text = f"may read {root}, and write {', '.join(may) or 'nothing'}"
    if "agents" not in may:
        return Finding("roles", FAIL, text, "an agent needs more: etcd-pd etcd-init makes the roles of a cell")
    as_whom = {(True, True): "all", (True, False): "prefill", (False, True): "decode"}
    who = as_whom.get(("rooms" in may and "prefill" in may, "decode" in may))
    if who is None:
        hint = f"neither the prefill nor the decode role; is {instance!r} the instance that these may write? --instance"
        return Finding("roles", FAIL, text, hint)
    return Finding(
        "roles", OK, text if who == "all" else f"{text}{DECODE_ROLE if who == 'decode' else ': the prefill role'}"
    )


async def _may_write(store: EtcdAdmin, key: bytes) -> bool:
    try:
        await store.txn([Compare(key, MAX_REVISION)], [Put(key, b"", 0)])
    except StoreRejected:
        return False
    return True


async def _lease(store: EtcdAdmin) -> Finding:
    """Grant, keep alive, revoke: timed by this process alone, as the agent does."""
    steps: dict[str, float] = {}
    try:
        with _timed(steps, "grant"):
            lease = await store.grant(LEASE_SECONDS)
        with _timed(steps, "keepalive"):
            ttl = await store.keep_alive(lease.lease_id)
        with _timed(steps, "revoke"):
            await store.revoke(lease.lease_id)
        left = (await store.lease_times(lease.lease_id)).left
    except (StoreError, LeaseNotFound, ConfigError) as exc:
        return Finding(
            "lease", FAIL, str(exc), "without leases nothing can be announced or registered; see alarms and roles"
        )
    text = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in steps.items())
    if ttl <= 0 or left:
        return Finding("lease", FAIL, f"{text}, but it lived {ttl} s when kept, {left} s when revoked", "is this etcd?")
    if max(steps.values()) > LEASE_SECONDS / 10:
        return Finding("lease", WARN, text, "etcd is slow: look at its disk (fsync), and at the network to it")
    return Finding("lease", OK, text)


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    steps[name] = time.monotonic() - started


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
