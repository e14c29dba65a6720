"""The packets that are JSON: what is encoded is decoded, and anything else is a ProtocolError that names the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from etcd_pd.errors import ConfigError, ProtocolError
from etcd_pd.wire import messages, to_agent, to_client
from etcd_pd.wire.values import InstanceInfo, PrefillInstance, Rank, RankEndpoint, Topology
from tests.support.packets import content_of, packet_of

INFO = InstanceInfo("uuid", "launch", ("h:1",), Topology(dp=2), "round_robin", extra={"a": [1]})
ANNOUNCE = to_agent.Announce("p", Rank(1), Topology(dp=2), "launch", ("h:1",), "10.0.0.1", 9, "round_robin", "")
SAID = (
    to_agent.Hello(3),
    to_agent.Hello(3, 10.0, 2**64 - 1, 7),
    ANNOUNCE,
    to_agent.Decoder("d"),
    to_agent.Fail(2**64 - 1, "out of memory", 1),
    to_client.Welcome("a", True),
    to_client.Announced(7, 6, "uuid"),
    to_client.Refused("p", "launch x"),
    to_client.RankEnded(7, "the rank's key vanished from etcd"),
    to_client.Rejected(5, 1, "RoomConflict", "room 5 is taken", holder="p/0@7", owned=4),
    to_client.Ended(1, "InstanceUnknown"),
    to_client.Ended(1, "PrefillLost", 9, dp_rank=0, epoch=7, arrived=messages.Answer(0, 7, 8, 77, 0, 1)),
    to_agent.Look(True),
    to_client.Looked("a", "/cell", 9, 1.5, True, 60.0, "live", "stale", ((0.001, 3),), ((0.5, 2), (1.0, 1))),
    to_client.Instance("p", 1, ("p", "h:1")),
    to_client.Instance.describe(
        "p", 1, ("p",), PrefillInstance("p", INFO, (RankEndpoint(Rank(1), "i", 9, "uuid", "serving", 7),))
    ),
)
KINDS = sorted({type(said) for said in SAID}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("said", SAID, ids=lambda said: type(said).__name__)
def test_what_is_encoded_is_decoded(said: Any) -> None:
    again = type(said).decode(said.encode())
    assert content_of(again.encode()) == content_of(said.encode())
    assert said.encode()[:1] == said.KIND


def test_an_instance_arrives_as_it_was_described() -> None:
    [*_, said] = SAID
    assert isinstance(said, to_client.Instance)
    assert to_client.Instance.decode(said.encode()).instance == PrefillInstance(
        "p", INFO, (RankEndpoint(Rank(1), "i", 9, "uuid", "serving", 7),)
    )


def test_a_field_is_passed_over_when_this_version_does_not_know_it() -> None:
    assert to_client.Refused.decode(packet_of(b"u", {"instance": "p", "holder": "x", "since": 7})) == to_client.Refused(
        "p", "x"
    )


def test_a_message_is_refused_when_it_does_not_fit_a_packet() -> None:
    with pytest.raises(ProtocolError, match="65536"):
        to_client.Refused("p", "x" * messages.MAX_PACKET).encode()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "rest",
    [b"", b"null", b"[]", b'"x"', b"{", b"\xff", b"[" * 60_000, b'{"a":' * 12_000, b"1" + b"0" * 9000],
    ids=range(9),
)
def test_decoding_fails_when_the_packet_is_malformed(kind: Any, rest: bytes) -> None:
    with pytest.raises(ProtocolError):
        kind.decode(kind.KIND + rest)


WRONG = (
    (to_agent.Hello, {"protocol": 3, "heartbeat": "often"}, "heartbeat"),
    (to_agent.Hello, {"protocol": 3, "heartbeat": None, "revision": -1}, "revision"),
    (to_agent.Hello, {"protocol": 3, "heartbeat": None, "cluster_id": 2**64}, "cluster_id"),
    (to_agent.Announce, {"rank": [2]}, "rank.dp"),
    (to_agent.Announce, {"rank": 1}, "rank"),
    (to_agent.Announce, {"topology": {"dp": 0}}, "topology.dp"),
    (to_agent.Announce, {"topology": [1]}, "topology"),
    (to_agent.Announce, {"topology": {"dp": 2, "ep": 1}}, "ep"),
    (to_agent.Announce, {"addresses": "h:1"}, "addresses"),
    (to_agent.Announce, {"addresses": [1]}, "addresses"),
    (to_agent.Announce, {"port": 65536}, "port"),
    (to_agent.Announce, {"extra": {"x": "y" * 9000}}, "extra"),
    (to_agent.Announce, {"linger": -1}, "linger"),
    (to_agent.Announce, {"epoch": 2**63}, "epoch"),
    (to_agent.Announce, {"incarnation": 5}, "incarnation"),
    (to_agent.Decoder, {"instance": "a/b"}, "instance"),
    (to_agent.Fail, {"room": -1, "reason": "", "sequence": 1}, "bootstrap_room"),
    (to_agent.Fail, {"room": 1, "reason": "x" * 513, "sequence": 1}, "reason"),
    (to_agent.Fail, {"room": 1, "reason": "", "sequence": 0}, "sequence"),
    (to_client.Announced, {"epoch": 0, "key_epoch": 1, "incarnation": "i"}, "epoch"),
    (to_client.Welcome, {"refused": 7}, "refused"),
    (to_client.RankEnded, {"epoch": 1, "reason": None}, "reason"),
    (to_client.Looked, {"agent": "a", "root": "/c", "watch": 7}, "watch"),
    (to_client.Looked, {"agent": "a", "root": "/c", "register_seconds": [[0.5, -1]]}, "register_seconds"),
    (to_client.Looked, {"agent": "a", "root": "/c", "resolve_seconds": [["soon", 1]]}, "resolve_seconds"),
    (to_client.Looked, {"agent": "a", "root": "/c", "resolve_seconds": [7]}, "int"),
    (to_client.Rejected, {"room": 1, "sequence": 1, "error": 5}, "error"),
    (to_client.Ended, {"id": 1, "error": "PrefillLost", "arrived": [0, 1, 2, 3, 9, 1]}, "source 9"),
    (to_client.Ended, {"id": 1, "error": "PrefillLost", "arrived": [0, 1]}, "missing"),
    (to_client.Ended, {"id": -1, "error": "PrefillLost"}, "id"),
    (to_client.Instance, {"id": "p", "number": 1, "names": ["p"], "info": {}}, "topology"),
    (to_client.Instance, {"id": "p", "number": 1, "names": [1]}, "names"),
    (to_client.Instance, {"id": "p", "number": 1, "names": ["p"], "info": [1]}, "info"),
)


@pytest.mark.parametrize(("kind", "fields", "word"), WRONG, ids=[f"{kind.__name__}-{word}" for kind, _, word in WRONG])
def test_decoding_names_the_field_when_it_breaks_its_rule(kind: Any, fields: dict[str, Any], word: str) -> None:
    said = content_of(ANNOUNCE.encode()) | fields if kind is to_agent.Announce else fields
    with pytest.raises(ProtocolError, match=word):
        kind.decode(packet_of(kind.KIND, said))


def test_a_callers_mistake_is_a_config_error_when_it_announces() -> None:
    with pytest.raises(ConfigError, match="port"):
        to_agent.Announce("p", Rank(0), Topology(), "launch", ("h:1",), "10.0.0.1", -1, "round_robin", "")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(SAID), st.data())
def test_decoding_raises_nothing_but_a_protocol_error_when_any_field_is_anything(
    said: Any, data: st.DataObject
) -> None:
    content = content_of(said.encode())
    name = data.draw(st.sampled_from(sorted(content)))
    content[name] = data.draw(anything)
    try:
        found = type(said).decode(packet_of(said.KIND, content))
    except ProtocolError:
        return
    if isinstance(found, to_client.Instance) and found.instance:
        assert found.instance.id == found.id
