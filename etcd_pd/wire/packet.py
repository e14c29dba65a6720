"""Packets that are rare: a kind, and JSON with a typed form.

A field that has its default is not sent (one whose default comes from a factory always is), and one that is not known
is passed over, so that versions can differ in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

from ..errors import ConfigError, ProtocolError
from . import messages

P = TypeVar("P", bound="Packet")


@dataclass(frozen=True)
class Packet:
    """A kind of packet; ``KIND`` is its first byte. What each field means stands at the class."""

    KIND: ClassVar[bytes]

    def encode(self) -> bytes:
        """The packet.

        Raises:
            ProtocolError: it is longer than a packet may be.
        """
        said = {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}
        packet = self.KIND + json.dumps(said, separators=(",", ":"), ensure_ascii=False, default=vars).encode()
        if len(packet) > messages.MAX_PACKET:
            raise ProtocolError(f"message of {len(packet)} bytes is longer than {messages.MAX_PACKET}")
        return packet

    @classmethod
    def decode(cls: type[P], packet: bytes) -> P:
        """What is in a packet of this kind.

        Raises:
            ProtocolError: it is malformed, or a field breaks its rule.
        """
        try:
            said = json.loads(packet[1:])
            if not isinstance(said, dict):
                raise ValueError("not an object")
            return cls(**{one.name: said[one.name] for one in fields(cls) if one.name in said})
        except (ValueError, TypeError, LookupError, RecursionError) as exc:
            raise ProtocolError(f"malformed {cls.__name__}: {exc}") from exc

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def check_type(field: str, value: object, kind: type) -> None:
    """Raise ConfigError where a field is of another type."""
    if not isinstance(value, kind):
        raise ConfigError(field, f"must be a {kind.__name__}, not {value!r:.80}")
