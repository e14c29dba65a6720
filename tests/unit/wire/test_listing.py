"""Pages of keys: each fits a packet, together they hold every key, and anything else is a ProtocolError."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from etcd_pd.errors import ProtocolError
from etcd_pd.wire import messages
from etcd_pd.wire.listing import (
    MAX_KEY,
    MAX_VALUE,
    GoneKey,
    ListedKey,
    decode_keys,
    encode_gone,
    encode_keys,
    read_gone,
)

NUMBERS = st.integers(0, 2**63 - 1)
KEYS = st.builds(ListedKey, st.binary(max_size=60), st.binary(max_size=60), NUMBERS, NUMBERS, NUMBERS)


@given(st.lists(KEYS, max_size=20))
def test_what_is_encoded_is_decoded(keys: list[ListedKey]) -> None:
    assert [key for page in encode_keys(keys) for key in decode_keys(page)] == keys


def test_every_page_fits_a_packet_when_there_are_many_keys() -> None:
    keys = [ListedKey(b"/cell/v1/rooms/p/%d" % n, b"x" * 50, n, n, n) for n in range(20_000)]
    pages = list(encode_keys(keys))
    assert max(map(len, pages)) <= messages.MAX_PACKET
    assert [key for page in pages for key in decode_keys(page)] == keys


def test_a_page_is_made_only_when_it_is_asked_for() -> None:
    taken: list[int] = []

    def keys() -> object:
        for n in range(20_000):
            taken.append(n)
            yield ListedKey(b"key", b"x" * 50, n, n, n)

    next(encode_keys(keys()))  # type: ignore[arg-type]
    assert len(taken) < 2000


def test_a_value_is_cut_and_a_key_passed_over_when_they_are_huge() -> None:
    keys = [ListedKey(b"a", b"v" * 10**6, 1, 1, 1), ListedKey(b"k" * (MAX_KEY + 1), b"", 1, 1, 1)]
    (page,) = encode_keys(keys)
    assert decode_keys(page) == [ListedKey(b"a", b"v" * MAX_VALUE, 1, 1, 1)]


def test_who_is_gone_is_encoded_and_decoded() -> None:
    gone = [GoneKey(b"a", 1.5, True), GoneKey(b"b", 3600.0, False)]
    assert [read_gone(key) for page in encode_gone(gone) for key in decode_keys(page)] == gone


@pytest.mark.parametrize("value", [b"", b"[]", b"7", b"{}", b'{"seconds": -1, "left": true}', b"[" * 10**5])
def test_who_is_gone_is_refused_when_it_is_malformed(value: bytes) -> None:
    with pytest.raises(ProtocolError, match="KEYS"):
        read_gone(ListedKey(b"a", value, 0, 0, 0))


@given(st.binary(min_size=1, max_size=100))
def test_garbage_is_a_protocol_error_or_keys(rest: bytes) -> None:
    try:
        assert all(isinstance(key, ListedKey) for key in decode_keys(messages.KEYS + rest))
    except ProtocolError:
        pass


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_page_that_is_cut_short_is_refused(cut: int) -> None:
    (page,) = encode_keys([ListedKey(b"key", b"value", 1, 1, 1)])
    with pytest.raises(ProtocolError, match="KEYS"):
        decode_keys(page[:-cut])
