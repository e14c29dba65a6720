"""The limits of what travels. Each check returns what it was given, or names the field and the rule that it breaks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

#: Largest bootstrap room: engines draw them from 63 bits (SGLang's router) or from 64 (SGLang itself, Dynamo).
MAX_ROOM = 2**64 - 1
#: Largest revision, token or lease id of etcd.
MAX_REVISION = 2**63 - 1
#: Longest instance id or address, so that any key stays far below the 64 KiB of a packet.
MAX_NAME = 253
#: Most addresses of one instance: spellings of one host, not a list of hosts.
MAX_ADDRESSES = 32
#: Longest reason or fingerprint that is stored, in characters.
MAX_TEXT = 512
#: Longest ``extra`` of an instance, in bytes of JSON: what an engine needs beside the topology, not a place for data.
MAX_EXTRA = 8192
#: Deepest nesting of ``extra``: far below where JSON decoders of any language give up.
MAX_DEPTH = 32
#: Longest linger, seconds: a rank that nobody vouches for must not stay for good.
MAX_LINGER = 3600.0
#: Largest size of one parallel dimension (dp, cp, tp, pp): a bound on typing errors, not on hardware.
MAX_PARALLEL = 4096


def check_room(room: object) -> int:
    """Return ``room`` if it is a bootstrap room (an int in 0..2^64-1).

    Raises:
        ConfigError: it is not.
    """
    if type(room) is not int or not 0 <= room <= MAX_ROOM:
        raise ConfigError("bootstrap_room", f"must be an integer in 0..2^64-1, not {room!r:.80}")
    return room


def check_name(field: str, name: object) -> str:
    """Return ``name`` if it can be an instance id or an address.

    Raises:
        ConfigError: it is not a string, is empty or too long, or holds a slash, a space or a control character.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise ConfigError(field, f"must be a string of 1..{MAX_NAME} characters, not {name!r:.80}")
    if "/" in name or not name.isprintable() or " " in name:
        raise ConfigError(field, f"must hold no slash, space or control character: {name!r}")
    return name


def check_text(field: str, text: object) -> str:
    """Return ``text`` if it is a string of at most ``MAX_TEXT`` characters.

    Raises:
        ConfigError: it is not, or UTF-8 cannot spell it.
    """
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ConfigError(field, f"must be a string of at most {MAX_TEXT} characters")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(field, "must be valid Unicode") from exc
    return text


def check_extra(extra: object) -> Mapping[str, Any]:
    """Return ``extra`` if it is a JSON object of at most ``MAX_EXTRA`` bytes, nested no deeper than ``MAX_DEPTH``.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(extra, Mapping) or _is_deeper(extra, MAX_DEPTH):
        raise ConfigError("extra", f"must be a JSON object, nested no deeper than {MAX_DEPTH}")
    try:
        size = len(json.dumps(dict(extra), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as exc:
        raise ConfigError("extra", f"must be a JSON object: {exc}") from exc
    if size > MAX_EXTRA:
        raise ConfigError("extra", f"must be at most {MAX_EXTRA} bytes of JSON, not {size}")
    return extra


def _is_deeper(value: object, depth: int) -> bool:
    """Whether containers nest deeper in a value than so many."""
    if not isinstance(value, (Mapping, list, tuple)):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return depth == 0 or any(_is_deeper(each, depth - 1) for each in inner)


def check_int(field: str, value: object, low: int, high: int) -> int:
    """Return ``value`` if it is an integer in ``low..high``.

    Raises:
        ConfigError: it is not.
    """
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(field, f"must be an integer in {low}..{high}, not {value!r:.80}")
    return value


def check_seconds(field: str, value: object, low: float, high: float) -> float:
    """Return ``value`` if it is a number of seconds in ``low..high``.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(field, f"must be a number of seconds in {low:g}..{high:g}, not {value!r:.80}")
    return value


def check_heartbeat(value: object) -> float:
    """Return ``value`` if it can be the seconds after which a silent engine counts as dead.

    Raises:
        ConfigError: it cannot.
    """
    return check_seconds("heartbeat", value, 0.1, 3600)


def check_linger(value: object) -> float:
    """Return ``value`` if it can be the seconds that a rank stays after its connection broke.

    Raises:
        ConfigError: it cannot.
    """
    return check_seconds("linger", value, 0, MAX_LINGER)
