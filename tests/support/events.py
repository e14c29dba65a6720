"""What clients hear, one event after the other."""

from __future__ import annotations

import weakref
from typing import TypeVar

import etcd_pd

E = TypeVar("E")

#: Events that came with one that was asked for.
_kept: weakref.WeakKeyDictionary[etcd_pd.Client, list[object]] = weakref.WeakKeyDictionary()


def next_event(client: etcd_pd.Client, kind: type[E]) -> E | None:
    """The next event of a kind on either side of the client, None where none has come.

    Others before it are dropped, those after it are kept.
    """
    events = _kept.setdefault(client, [])
    events.extend([*client.prefill.poll(), *client.decode.poll()])
    while events:
        event = events.pop(0)
        if isinstance(event, kind):
            return event
    return None
