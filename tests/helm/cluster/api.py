"""The part of the Kubernetes API that the chart's pods use, over TLS, with tokens and the rendered Roles.

Secrets, ConfigMaps and StatefulSets by name, pods by label selector and as a watch. Whoever asks for something
that its service account's Role does not allow gets 403, so the Roles are tested too.
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
        #: What happened to pods, for watches that begin behind it.
        self._events: list[Object] = []
        self._happened = asyncio.Condition()
        self._ending = asyncio.Event()
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
        self._do(self._end())
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

    def put_pod(self, kind: str, pod: Object) -> None:
        """Tell who watches: ``kind`` is ADDED, MODIFIED or DELETED."""
        self._do(self._put_pod(kind, json.loads(json.dumps(pod))))

    async def _put_pod(self, kind: str, pod: Object) -> None:
        key = ("pods", pod["metadata"]["name"])
        if key in self.store.objects:
            stored = self.store.replace("pods", pod)
        else:
            stored = self.store.create("pods", pod)
        if kind == "DELETED":
            del self.store.objects[key]
        async with self._happened:
            self._events.append({"type": kind, "object": stored})
            self._happened.notify_all()

    async def _end(self) -> None:
        async with self._happened:
            self._ending.set()
            self._happened.notify_all()
        await self._runner.cleanup()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(20)

    async def _listen(self) -> None:
        app = web.Application(client_max_size=4 << 20)
        for group in ("/api/v1", "/apis/{group}/v1"):
            app.router.add_route("*", group + "/namespaces/{namespace}/{kind}", self._collection)
            app.router.add_route("*", group + "/namespaces/{namespace}/{kind}/{name}", self._one)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, PORT, ssl_context=self._context).start()

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        if request.method == "POST":
            self._check(request, "create", "")
            return self._answer(self.store.create, kind, await request.json())
        watches = request.query.get("watch") in ("1", "true")
        self._check(request, "watch" if watches else "list", "")
        words = request.query.get("labelSelector", "")
        selector = dict(word.split("=", 1) for word in words.split(",") if word)
        return await self._watch(request, selector) if watches else self._list(kind, selector)

    def _list(self, kind: str, selector: dict[str, str]) -> web.Response:
        items = [
            each
            for (held, _), each in self.store.objects.items()
            if held == kind and selector.items() <= each["metadata"].get("labels", {}).items()
        ]
        version = {"resourceVersion": str(self.store.version)}
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": version, "items": items})

    async def _watch(self, request: web.Request, selector: dict[str, str]) -> web.StreamResponse:
        """Everything after the version that a list showed, and then what happens."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        version, told = int(request.query.get("resourceVersion") or 0), 0
        while not self._ending.is_set():
            news = self._events[told:]
            for event in news:
                metadata = event["object"]["metadata"]
                if int(metadata["resourceVersion"]) > version and selector.items() <= metadata["labels"].items():
                    await response.write(json.dumps(event).encode() + b"\n")
            told += len(news)
            async with self._happened:
                while not self._ending.is_set() and told == len(self._events):
                    await self._happened.wait()
        return response

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
