"""What every HTTP listener of this project grants a client: engine, gateway, metrics, page. Standard library only."""

from __future__ import annotations

#: Longest request line, and longest single header, bytes; most headers. aiohttp's and nginx's own are of this size.
HEADER_BYTES, MOST_HEADERS = 8_190, 128
#: Largest body, bytes: a prompt of a million token ids fits.
BODY_BYTES = 16 << 20
#: Largest body of the bootstrap protocol, bytes: a query for some ten thousand rooms.
BOOTSTRAP_BODY_BYTES = 1 << 20
#: How long a connection may be silent, or take for its first header, seconds: above what proxies keep connections for.
IDLE_SECONDS = 120.0
#: How long the body of a request, or all of a scrape, may take to arrive, seconds.
REQUEST_SECONDS = 30.0
#: How long the rest of a body that nobody wants is read, so that the answer arrives before the end, seconds.
LINGER_SECONDS = 1.0
