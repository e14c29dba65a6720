"""The part of the Kubernetes API that the chart's pods use, over TLS, with tokens and the rendered Roles.

Objects by name. Whoever asks for something that its service account's Role does not allow gets 403, so the Roles are
tested too.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import threading
import uuid
from collections.abc import Coroutine
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from aiohttp import web

from etcd_pd.kubernetes.api import Object, ObjectConflict
from etcd_pd.kubernetes.authority import Identity, issue, make_authority
from tests.helm.secrets import MemoryApi

PORT = 443
NAME = "kubernetes.default.svc"


class ApiServer:
    """The API of one namespace.

    Args:
        host: address to listen on.
        directory: for certificates.
    """

    def __init__(self, host: str, directory: Path) -> None:
        self.host, self.store, self.refused = host, MemoryApi(), list[str]()
        self._roles: dict[str, list[Object]] = {}
        self._bound: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        now, valid = datetime.now(timezone.utc), timedelta(days=1)
        authority = make_authority("kubernetes", now, valid)
        self.ca = authority.certificate
        server = issue(authority, Identity(NAME, (NAME, host)), now, valid)
        (directory / "api.crt").write_bytes(server.certificate)
        (directory / "api.key").write_bytes(server.key)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(directory / "api.crt", directory / "api.key")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubernetes-api", daemon=True)

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        """End all connections."""
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def token(self, account: str) -> str:
        """A token for a service account."""
        token = secrets.token_hex(16)
        self._tokens[token] = account
        return token

    def apply(self, objects: list[Object]) -> None:
        """Take over Roles, ConfigMaps and StatefulSets."""
        for each in objects:
            name = each["metadata"]["name"]
            if each["kind"] == "Role":
                self._roles[name] = each["rules"]
            elif each["kind"] == "RoleBinding":
                self._bound |= {subject["name"]: each["roleRef"]["name"] for subject in each["subjects"]}
            elif each["kind"] == "ConfigMap":
                known = self.store.get("configmaps", name)
                (self.store.replace if known else self.store.create)("configmaps", each)
            elif each["kind"] == "StatefulSet" and not self.store.get("statefulsets", name):
                uid = {"uid": str(uuid.uuid4())}
                self.store.create("statefulsets", {**each, "metadata": {**each["metadata"], **uid}})

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(20)

    async def _listen(self) -> None:
        app = web.Application(client_max_size=4 << 20)
        for group in ("/api/v1", "/apis/{group}/v1"):
            app.router.add_post(group + "/namespaces/{namespace}/{kind}", self._create)
            app.router.add_route("*", group + "/namespaces/{namespace}/{kind}/{name}", self._one)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, PORT, ssl_context=self._context).start()

    async def _create(self, request: web.Request) -> web.Response:
        self._check(request, "create", "")
        return self._answer(self.store.create, request.match_info["kind"], await request.json())

    async def _one(self, request: web.Request) -> web.Response:
        kind, name = request.match_info["kind"], request.match_info["name"]
        if request.method == "PUT":
            self._check(request, "update", name)
            return self._answer(self.store.replace, kind, await request.json())
        self._check(request, "get", name)
        found = self.store.get(kind, name)
        return web.json_response(found or {"kind": "Status", "code": 404}, status=200 if found else 404)

    def _answer(self, act: Any, kind: str, body: Object) -> web.Response:
        try:
            return web.json_response(act(kind, body))
        except ObjectConflict as exc:
            return web.json_response({"kind": "Status", "message": str(exc)}, status=409)

    def _check(self, request: web.Request, verb: str, name: str) -> None:
        account = self._tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        group, kind = request.match_info.get("group", ""), request.match_info["kind"]
        for rule in self._roles.get(self._bound.get(account or "", ""), ()):
            named = rule.get("resourceNames")
            allowed = group in rule["apiGroups"] and kind in rule["resources"] and verb in rule["verbs"]
            if allowed and (named is None or name in named):
                return
        self.refused.append(f"{account} {verb} {kind}/{name}")
        raise web.HTTPForbidden(text=json.dumps({"kind": "Status", "message": f"{account} may not {verb} {kind}"}))
