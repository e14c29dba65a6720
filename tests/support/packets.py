"""Packets with JSON in them, as the wire has them and not as the package spells them."""

from __future__ import annotations

import json
from typing import Any


def packet_of(kind: bytes, message: dict[str, Any]) -> bytes:
    """A packet of a kind, in ASCII: it can spell what the package refuses to."""
    return kind + json.dumps(message).encode()


def content_of(packet: bytes) -> dict[str, Any]:
    """What is in a packet."""
    content: dict[str, Any] = json.loads(packet[1:])
    return content
