"""Where the hosts of endpoints are: names are looked up, and again after a failure, at pauses that grow."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..errors import StoreUnavailable
from .deadline import within

#: The first look-up after a failure comes within the first of these, later ones at pauses that double up to the
#: second, seconds. All are jittered: a whole cell sees the same failure.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
#: The longest wait for the system's resolver, seconds; it asks on meanwhile, and the next look-up may find it quicker.
LOOKUP_SECONDS = 2.0

Resolve = Callable[[str], Awaitable[list[str]]]


async def ask_system(host: str) -> list[str]:
    """A name's addresses, in the order in which the system would try them.

    Raises:
        OSError: there are none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass
class _Name:
    addresses: list[str] = field(default_factory=list)
    doubted: bool = True
    next_at: float = 0.0
    pause: float = FIRST_PAUSE


class Names:
    """Addresses by name, as they were when they were looked up last.

    Args:
        resolve: asks for them; the system, unless a test has other names.
        clock: seconds.

    Attributes:
        lookups: so far.
    """

    def __init__(self, resolve: Resolve = ask_system, clock: Callable[[], float] = time.monotonic) -> None:
        self._resolve, self._clock = resolve, clock
        self._names: dict[str, _Name] = {}
        self.lookups = 0

    async def addresses(self, host: str) -> list[str]:
        """Where a host is. Addresses that are known stand until a look-up finds others.

        Raises:
            StoreUnavailable: it cannot be found.
        """
        if is_address(host):
            return [host]
        name = self._names.setdefault(host, _Name())
        now = self._clock()
        if name.doubted and now >= name.next_at:
            name.next_at = now + _jittered(name.pause)
            name.pause = min(2 * name.pause, LONGEST_PAUSE)
            await self._look_up(host, name)
        if not name.addresses:
            raise StoreUnavailable("connect", f"the name {host} cannot be found at present")
        return name.addresses

    def doubt(self, host: str) -> None:
        """Nobody answers there any more: look the name up again, if it is one."""
        name = self._names.get(host)
        if name and not name.doubted:
            name.doubted = True
            name.next_at = max(name.next_at, self._clock() + random.uniform(0.0, FIRST_PAUSE))

    def trust(self, host: str) -> None:
        """Somebody answered there: the next failure is a new one."""
        if host in self._names:
            self._names[host].pause = FIRST_PAUSE

    async def _look_up(self, host: str, name: _Name) -> None:
        self.lookups += 1
        try:
            found = await within(self._resolve(host), LOOKUP_SECONDS)
        except (OSError, asyncio.TimeoutError) as exc:
            if not name.addresses:
                raise StoreUnavailable("connect", f"cannot find {host}: {exc!s:.200}") from exc
            return  # still doubted: asked again after the pause
        name.addresses, name.doubted = found, False


def is_address(host: str) -> bool:
    """Whether a host is an address already, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _jittered(pause: float) -> float:
    return random.uniform(pause / 2, pause)
