"""When this agent's client certificate ends, read off its DER encoding: agents need no package for certificates."""

from __future__ import annotations

import re
import ssl
from datetime import datetime, timezone
from pathlib import Path

_BLOCK = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
#: ASN.1 tags: the version, which is optional; the two ways to write a time.
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18
_FORMATS = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}


def certificate_end(path: str) -> float | None:
    """The end of the first certificate in a PEM file, seconds since 1970; None where there is none to be read."""
    if not path:
        return None
    try:
        block = _BLOCK.search(Path(path).read_text())
        return _end(ssl.PEM_cert_to_DER_cert(block[0])) if block else None
    except (OSError, ValueError, LookupError):
        return None  # amid its renewal, or no certificate: whoever connects says so


def _end(der: bytes) -> float:
    _, start, _ = _element(der, 0)
    _, start, _ = _element(der, start)  # what is signed
    tag, _, _ = _element(der, start)
    for _ in range(4 if tag == _VERSION else 3):  # version, serial number, algorithm, issuer
        _, _, start = _element(der, start)
    _, start, _ = _element(der, start)  # validity
    _, _, start = _element(der, start)  # its beginning
    tag, start, end = _element(der, start)
    return datetime.strptime(der[start:end].decode(), _FORMATS[tag]).replace(tzinfo=timezone.utc).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Of the element there: its tag, and where its content begins and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size], "big"), start + size
    return der[at], start, start + length
