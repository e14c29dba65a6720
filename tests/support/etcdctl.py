"""An etcd client for tests that shares nothing with etcd_pd.store: etcd's JSON gateway over HTTP, and its metrics.

It exists so that a test's verdict on what lies in etcd does not come from the code under test. Every call is one HTTP
request; the gateway turns it into one gRPC call of the same name, so own calls count in etcd's gRPC counters, and
reading the counters does not.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


class EtcdError(Exception):
    """etcd answered with an error; `status` is the HTTP status, `code` gRPC's."""

    def __init__(self, message: str, status: int, code: int) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class KeyValue:
    key: str
    value: str
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True)
class LeaseInfo:
    """`ttl` is -1 for a lease that does not exist (any more)."""

    id: int
    ttl: int
    granted_ttl: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    version: str
    member_id: int
    leader: int
    raft_term: int
    revision: int
    db_size: int


class EtcdCtl:
    """Speaks to one endpoint, `http://host:port`, as a user where there is one. `timeout`: seconds a request."""

    def __init__(self, endpoint: str, timeout: float = 5.0, *, user: str = "", password: str = "") -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._user, self._password = user, password
        self._headers: dict[str, str] | None = None

    # ---- keys

    def get(self, key: str) -> KeyValue | None:
        found = self._range({"key": _encode(key)})
        return found[0] if found else None

    def get_prefix(self, prefix: str) -> list[KeyValue]:
        """All keys that begin with `prefix`, in order; "" is every key."""
        return self._range(_prefix_range(prefix))

    def count_prefix(self, prefix: str) -> int:
        return int(self._call("/v3/kv/range", {**_prefix_range(prefix), "count_only": True}).get("count", 0))

    def put(self, key: str, value: str, lease: int = 0) -> int:
        """The revision of the write."""
        answer = self._call("/v3/kv/put", {"key": _encode(key), "value": _encode(value), "lease": str(lease)})
        return _revision(answer)

    def put_all(self, values: dict[str, str]) -> None:
        """Writes them in one transaction."""
        puts = [{"request_put": {"key": _encode(key), "value": _encode(value)}} for key, value in values.items()]
        self._call("/v3/kv/txn", {"success": puts})

    def delete(self, key: str) -> int:
        """How many keys that deleted."""
        return int(self._call("/v3/kv/deleterange", {"key": _encode(key)}).get("deleted", 0))

    def delete_prefix(self, prefix: str) -> int:
        return int(self._call("/v3/kv/deleterange", _prefix_range(prefix)).get("deleted", 0))

    def revision(self) -> int:
        """The store's revision now, read linearizably."""
        return _revision(self._call("/v3/kv/range", {"key": _encode("\0"), "count_only": True}))

    def compact(self, revision: int | None = None) -> int:
        """Forgets history before `revision` (now, if None), physically; returns that revision."""
        target = self.revision() if revision is None else revision
        self._call("/v3/kv/compaction", {"revision": str(target), "physical": True})
        return target

    # ---- leases

    def grant(self, ttl: int) -> int:
        return int(self._call("/v3/lease/grant", {"TTL": str(ttl), "ID": "0"})["ID"])

    def revoke(self, lease: int) -> None:
        self._call("/v3/lease/revoke", {"ID": str(lease)})

    def lease(self, lease: int) -> LeaseInfo:
        answer = self._call("/v3/lease/timetolive", {"ID": str(lease), "keys": True})
        return LeaseInfo(
            id=int(answer.get("ID", lease)),
            ttl=int(answer.get("TTL", 0)),
            granted_ttl=int(answer.get("grantedTTL", 0)),
            keys=tuple(sorted(_decode(key) for key in answer.get("keys", ()))),
        )

    def leases(self) -> list[int]:
        return sorted(int(lease["ID"]) for lease in self._call("/v3/lease/leases", {}).get("leases", ()))

    # ---- the server

    def status(self) -> Status:
        answer = self._call("/v3/maintenance/status", {})
        return Status(
            version=answer["version"],
            member_id=int(answer["header"]["member_id"]),
            leader=int(answer.get("leader", 0)),
            raft_term=int(answer.get("raftTerm", 0)),
            revision=_revision(answer),
            db_size=int(answer.get("dbSize", 0)),
        )

    def alarm(self, name: str, *, active: bool) -> None:
        """Raises or disarms an alarm, "NOSPACE" or "CORRUPT", of the member that answers."""
        member = str(self.status().member_id)
        action = "ACTIVATE" if active else "DEACTIVATE"
        self._call("/v3/maintenance/alarm", {"action": action, "memberID": member, "alarm": name})

    def healthy(self) -> bool:
        """Whether /health says so; False too where nothing answers."""
        try:
            return bool(json.loads(self._get("/health"))["health"] == "true")
        except (OSError, ValueError, KeyError):
            return False

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the Prometheus samples called `name` whose labels include `labels`; 0.0 if there is none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        total = 0.0
        for line in self._get("/metrics").splitlines():
            series, _, value = line.rpartition(" ")
            family, _, rest = series.partition("{")
            if family == name and all(pair in rest for pair in wanted):
                total += float(value)
        return total

    def calls(self, method: str, service: str = "KV") -> int:
        """gRPC calls that this member began to serve since it started: calls("Range"), calls("Watch", "Watch")."""
        return int(self.metric("grpc_server_started_total", grpc_method=method, grpc_service=f"etcdserverpb.{service}"))

    # ---- HTTP

    def headers(self) -> dict[str, str]:
        """What says who asks: a token, fetched once."""
        if self._headers is None:
            self._headers = {}
            if self._user:
                request = {"name": self._user, "password": self._password}
                self._headers = {"Authorization": self._call("/v3/auth/authenticate", request)["token"]}
        return self._headers

    def _range(self, request: dict[str, Any]) -> list[KeyValue]:
        return [
            KeyValue(
                key=_decode(found["key"]),
                value=_decode(found.get("value", "")),
                create_revision=int(found["create_revision"]),
                mod_revision=int(found["mod_revision"]),
                version=int(found["version"]),
                lease=int(found.get("lease", 0)),
            )
            for found in self._call("/v3/kv/range", request).get("kvs", ())
        ]

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.endpoint + path, json.dumps(body).encode(), self.headers())
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                parsed: dict[str, Any] = json.load(answer)
                return parsed
        except urllib.error.HTTPError as refused:
            with refused:
                said = json.load(refused)
            raise EtcdError(said.get("message", str(said)), refused.code, int(said.get("code", -1))) from None

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.endpoint + path, timeout=self._timeout) as answer:
            text: str = answer.read().decode()
            return text


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()


def _prefix_range(prefix: str) -> dict[str, Any]:
    if not prefix:
        return {"key": _encode("\0"), "range_end": _encode("\0")}
    return {"key": _encode(prefix), "range_end": _encode(prefix[:-1] + chr(ord(prefix[-1]) + 1))}


def _revision(answer: dict[str, Any]) -> int:
    return int(answer["header"]["revision"])
