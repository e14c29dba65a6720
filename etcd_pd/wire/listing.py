"""What an agent knows of its cell, key by key, for those who look: LOOK begins, and each LOOK_ON asks for a page.

Who is gone is listed in the same form: a key with a value of JSON, :class:`GoneKey`, and no revisions.

A client that never asks gets none of it, and an agent that knows neither packet closes the connection of who asks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import ProtocolError
from . import messages
from .limits import check_seconds
from .to_client import MAX_AGE

#: Longest value that is shown whole, in bytes: an instance's is far below, and what is cut reads as garbage.
MAX_VALUE = 49_152
#: Longest key that is shown, in bytes: one of the cell's own is far below.
MAX_KEY = 4096

_KEY = struct.Struct("<HHqqq")


class ListedKey(NamedTuple):
    """A key as etcd keeps it; ``lease`` is 0 where it hangs on none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class GoneKey(NamedTuple):
    """Somebody who was there.

    Attributes:
        key: as etcd had it.
        seconds: how long ago it went.
        left: it was drained, or its process ended as it was asked to.
    """

    key: bytes
    seconds: float
    left: bool


def encode_gone(gone: Iterable[GoneKey]) -> Iterator[bytes]:
    """KEYS packets for those who are gone."""
    values = ((one.key, json.dumps({"seconds": one.seconds, "left": one.left}).encode(), 0, 0, 0) for one in gone)
    return encode_keys(values)


def read_gone(listed: ListedKey) -> GoneKey:
    """Who is gone, of a KEYS packet.

    Raises:
        ProtocolError: it is malformed.
    """
    try:
        said = json.loads(listed.value)
        return GoneKey(listed.key, check_seconds("seconds", said["seconds"], 0, MAX_AGE), said["left"] is True)
    except (ValueError, TypeError, LookupError, RecursionError) as exc:
        raise ProtocolError(f"malformed KEYS packet: {exc}") from exc


def encode_keys(keys: Iterable[tuple[bytes, bytes, int, int, int]]) -> Iterator[bytes]:
    """KEYS packets for any number of :class:`ListedKey`, or tuples of the same; each is made when it is asked for."""
    page = bytearray(messages.KEYS)
    for key, value, *numbers in keys:
        if len(key) > MAX_KEY:
            continue
        shown = value[:MAX_VALUE]
        record = _KEY.pack(len(key), len(shown), *numbers) + key + shown
        if len(page) + len(record) > messages.MAX_PACKET:
            yield bytes(page)
            page = bytearray(messages.KEYS)
        page += record
    if len(page) > 1:
        yield bytes(page)


def decode_keys(packet: bytes) -> list[ListedKey]:
    """The keys of a KEYS packet; none where the last page came before.

    Raises:
        ProtocolError: it is malformed.
    """
    found, at = [], 1
    while at < len(packet):
        try:
            key_size, value_size, *numbers = _KEY.unpack_from(packet, at)
        except struct.error as exc:
            raise ProtocolError("malformed KEYS packet") from exc
        middle = at + _KEY.size + key_size
        at, start = middle + value_size, at + _KEY.size
        if at > len(packet):
            raise ProtocolError("malformed KEYS packet")
        found.append(ListedKey(packet[start:middle], packet[middle:at], *numbers))
    return found
