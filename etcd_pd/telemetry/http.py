"""As much of HTTP as a page and a scrape need, on asyncio alone: GET of fixed paths, and streams of events."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from . import http_limits


class Answer(NamedTuple):
    """What a GET is answered."""

    content_type: str
    body: bytes
    headers: tuple[str, ...] = ()


#: A host that means every address.
EVERYWHERE = "*"

#: Writes server-sent events until the client has gone, which is an OSError.
Stream = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def serve(
    host: str,
    port: int,
    answers: Mapping[str, Callable[[], Answer]],
    streams: Mapping[str, Stream] | None = None,
    hosts: Collection[str] = (),
) -> asyncio.Server:
    """Serve on this event loop.

    Args:
        host, port: where; host ``*``: at every address, of IPv4 and IPv6; port 0: any.
        answers: by path, what makes the answer.
        streams: by path, what writes events.
        hosts: where not empty, the only names in a request's Host: a stranger's page cannot reach a loopback address
            under a name of its own then.

    Raises:
        OSError: the address cannot be had.
    """

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), http_limits.REQUEST_SECONDS)
            path = _path(request, hosts)
            if path in answers:
                await _send(writer, "200 OK", answers[path]())
            elif streams and path in streams:
                head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n"
                writer.write(head.encode())
                await streams[path](writer)
            else:
                await _send(writer, "404 Not Found", Answer("text/plain", b"not here\n"))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, OSError, ValueError):
            pass  # it has gone, or speaks no HTTP
        except asyncio.CancelledError:
            pass  # the server ends: up to Python 3.11 asyncio prints a traceback of a talk that was cancelled
        finally:
            writer.close()

    # Bound and listening before the loop has it: uvloop says nothing where listen() fails, as it does when another
    # process listens on the port after this one's bind().
    return await asyncio.start_server(talk, sock=_listen(host, port), limit=http_limits.HEADER_BYTES)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; ``*`` means every address of IPv4 and IPv6, as far as the machine has them."""
    if host == EVERYWHERE and socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    host = "0.0.0.0" if host == EVERYWHERE else host
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def _path(request: bytes, hosts: Collection[str]) -> str:
    """The path that a GET asks for; empty where it is none, or is meant for another host."""
    line, *headers = request.decode("latin-1").split("\r\n")
    method, path, _ = line.split(" ", 2)
    named = [value.strip() for name, _, value in (text.partition(":") for text in headers) if name.lower() == "host"]
    if hosts and [urlsplit(f"//{name}").hostname for name in named] not in [[host] for host in hosts]:
        return ""
    return path.partition("?")[0] if method == "GET" else ""


async def _send(writer: asyncio.StreamWriter, status: str, answer: Answer) -> None:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {answer.content_type}", f"Content-Length: {len(answer.body)}"]
    lines += [*answer.headers, "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode() + answer.body)
    await asyncio.wait_for(writer.drain(), http_limits.REQUEST_SECONDS)
