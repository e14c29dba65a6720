"""etcd's messages as generated here: the right numbers, on each protobuf that an agent may meet."""

from __future__ import annotations

import ast
import importlib.util
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor

from etcd_pd.store.etcdrpc.proto import auth_pb2, kv_pb2, rpc_pb2
from tests.support.etcd_server import EtcdServer

_REPOSITORY = Path(__file__).parents[2]

_USE_ETCD3 = """
from etcd_pd.store import etcdrpc
etcdrpc.install()
etcdrpc.install()
import etcd3
import google.protobuf
assert etcd3.etcdrpc is etcdrpc
client = etcd3.client(port=1)
assert client.transactions.create("k") == 0
asked = etcdrpc.WatchRequest(create_request=etcdrpc.WatchCreateRequest(key=b"k", watch_id=7, fragment=True))
assert etcdrpc.WatchRequest.FromString(asked.SerializeToString()) == asked
client.channel.close()
print(google.protobuf.__version__)
"""


def _run(code: str, first_on_path: Path | None = None) -> str:
    """What `code` prints, in an interpreter of its own, warnings being errors."""
    path = [str(first_on_path), str(_REPOSITORY)] if first_on_path else [str(_REPOSITORY)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_etcd3_works_with_the_installed_protobuf() -> None:
    assert int(_run(_USE_ETCD3).split(".")[0]) >= 6


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_etcd3_works_with_the_oldest_protobuf(request: pytest.FixtureRequest) -> None:
    wanted = "6.33.6"
    target = Path(request.config.cache.mkdir(f"protobuf-{wanted}"))
    if not (target / f"protobuf-{wanted}.dist-info" / "RECORD").exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--upgrade",
            "--no-deps",
        ]
        subprocess.run([*pip, "--target", str(target), f"protobuf=={wanted}"], check=True)
    assert _run(_USE_ETCD3, first_on_path=target) == wanted


def test_installing_too_late_says_so() -> None:
    _run(
        """
import sys, types
sys.modules["etcd3.etcdrpc"] = types.ModuleType("etcd3.etcdrpc")
from etcd_pd.store import etcdrpc
try:
    etcdrpc.install()
except ImportError as refused:
    assert "call install() first" in str(refused)
else:
    raise AssertionError("not refused")
"""
    )


def _messages(ours: Descriptor) -> Iterator[Descriptor]:
    yield ours
    for nested in ours.nested_types:
        yield from _messages(nested)


def _published() -> dict[str, dict[str, tuple[int, int, str, bool]]]:
    """Message -> field -> (number, type, type's name, repeated), from the etcd3 package's own descriptors."""
    package = importlib.util.find_spec("etcd3")
    assert package is not None and package.origin is not None
    found: dict[str, dict[str, tuple[int, int, str, bool]]] = {}
    for name in ("kv", "auth", "rpc"):
        source = (Path(package.origin).parent / "etcdrpc" / f"{name}_pb2.py").read_text()
        serialized = next(
            literal.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.keyword) and node.arg == "serialized_pb"
            for literal in ast.walk(node.value)
            if isinstance(literal, ast.Constant)
        )
        assert isinstance(serialized, str | bytes)
        raw = serialized if isinstance(serialized, bytes) else serialized.encode("latin1")
        file = descriptor_pb2.FileDescriptorProto.FromString(raw)
        for message in file.message_type:
            found[f"{file.package}.{message.name}"] = {
                field.name: (field.number, field.type, field.type_name.lstrip("."), field.label == field.LABEL_REPEATED)
                for field in message.field
            }
    return found


# Newer than the etcd3 package; numbers from etcd's API reference.
_NEWER = {
    "etcdserverpb.WatchRequest": {"progress_request": 3},
    "etcdserverpb.WatchCreateRequest": {"watch_id": 7, "fragment": 8},
    "etcdserverpb.WatchResponse": {"fragment": 7},
    "etcdserverpb.Member": {"isLearner": 5},
    "etcdserverpb.MemberAddRequest": {"isLearner": 2},
    "etcdserverpb.MemberListRequest": {"linearizable": 1},
    "etcdserverpb.StatusResponse": {"raftAppliedIndex": 7, "errors": 8, "dbSizeInUse": 9, "isLearner": 10},
    "etcdserverpb.AuthStatusResponse": {"header": 1, "enabled": 2, "authRevision": 3},
    "etcdserverpb.AuthUserAddRequest": {"options": 3},
    "authpb.UserAddOptions": {"no_password": 1},
}


def test_every_field_has_its_published_number() -> None:
    published = _published()
    checked = 0
    for module in (auth_pb2, kv_pb2, rpc_pb2):
        for top in module.DESCRIPTOR.message_types_by_name.values():
            for message in _messages(top):
                for field in message.fields:
                    where = f"{message.full_name}.{field.name}"
                    known = published.get(message.full_name, {}).get(field.name)
                    if known is None:
                        assert field.number == _NEWER[message.full_name][field.name], where
                    else:
                        named = field.message_type or field.enum_type
                        name = named.full_name if named else ""
                        assert (field.number, field.type, name, field.is_repeated) == known, where
                    checked += 1
    assert checked > 150


@pytest.mark.integration
def test_stubs_speak_to_etcd(etcd: EtcdServer, root: str) -> None:
    import grpc

    from etcd_pd.store import etcdrpc

    key = root.encode()
    asked: queue.SimpleQueue[etcdrpc.WatchRequest | None] = queue.SimpleQueue()
    with grpc.insecure_channel(etcd.endpoint.removeprefix("http://")) as channel:
        answers = etcdrpc.WatchStub(channel).Watch(iter(asked.get, None), timeout=10)
        create = etcdrpc.WatchCreateRequest(key=key, watch_id=7, fragment=True)
        asked.put(etcdrpc.WatchRequest(create_request=create))
        created = next(answers)
        assert (created.created, created.watch_id) == (True, 7)

        put = etcdrpc.KVStub(channel).Put(etcdrpc.PutRequest(key=key, value=b"v"), timeout=5)
        told = next(answers)
        assert told.watch_id == 7
        assert [(event.kv.key, event.kv.mod_revision) for event in told.events] == [(key, put.header.revision)]

        asked.put(etcdrpc.WatchRequest(progress_request=etcdrpc.WatchProgressRequest()))
        progress = next(answers)
        assert not progress.events
        assert progress.header.revision >= put.header.revision

        asked.put(None)
        answers.cancel()
    assert etcd.ctl.get(root) is not None
