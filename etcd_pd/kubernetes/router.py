"""Requests to SGLang's router, with the key that it may ask for."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any


def own_key() -> str:
    """The key that this process was given for the router; empty: none."""
    return os.environ.get("ROUTER_API_KEY", "")


def make_request(url: str, key: str, body: Any = None, method: str = "GET") -> urllib.request.Request:
    """A request with a JSON body, or without one.

    Args:
        url: of the router, and what is asked of it.
        key: what the router asks for; empty: nothing.
        body: None where there is none.
        method: of HTTP.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    return urllib.request.Request(url, data, headers, method=method)
