"""What the shell offers for an instance, a rank or a room: what etcd holds, a few names, soon or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..config import EtcdSettings
from ..core.keys import AgentKey, DecodeKey, Keys, PrefillKey, RankKey, RoomKey, prefix_end
from .local import fill_in
from .options import build_settings

if TYPE_CHECKING:
    from ..store.admin import EtcdAdmin

#: How long a person waits for the shell, seconds.
PATIENCE_SECONDS = 2.0
#: Most keys that are looked at, and most names that are offered.
MOST_KEYS, MOST_NAMES = 1000, 50
#: Most instances whose rooms are looked for.
MOST_INSTANCES = 16


def complete_instance(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Prefill instances."""
    return _offer(ctx, incomplete, _prefills)


def complete_member(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Prefill and decode instances, and agents."""

    async def names(store: EtcdAdmin, keys: Keys) -> list[str]:
        found = [*await _prefills(store, keys)]
        for prefix in (keys.decode(""), keys.agent("")):
            for key in map(keys.parse, await store.first_keys(prefix, prefix_end(prefix), MOST_KEYS)):
                if isinstance(key, DecodeKey):
                    found.append(key.instance)
                elif isinstance(key, AgentKey):
                    found.append(key.agent)
        return found

    return _offer(ctx, incomplete, names)


def complete_rank(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Data-parallel ranks of the instance that was named before; of all where none was."""
    instance = ctx.params.get("instance")

    async def names(store: EtcdAdmin, keys: Keys) -> list[str]:
        prefix = keys.prefill(instance) + b"/" if instance else keys.prefills()
        found = map(keys.parse, await store.first_keys(prefix, prefix_end(prefix), MOST_KEYS))
        return list(map(str, sorted({key.rank.dp for key in found if isinstance(key, RankKey)})))

    return _offer(ctx, incomplete, names)


def complete_room(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Rooms in flight that begin so, of the instance that was named, or of some."""
    instance = ctx.params.get("instance")

    async def names(store: EtcdAdmin, keys: Keys) -> list[str]:
        found: list[str] = []
        for name in [instance] if instance else (await _prefills(store, keys))[:MOST_INSTANCES]:
            prefix = keys.rooms(name) + incomplete.encode()
            listed = map(keys.parse, await store.first_keys(prefix, prefix_end(prefix), MOST_NAMES))
            found += [str(key.room) for key in listed if isinstance(key, RoomKey)]
        return found

    return _offer(ctx, incomplete, names)


async def _prefills(store: EtcdAdmin, keys: Keys) -> list[str]:
    listed = await store.first_keys(keys.prefills(), prefix_end(keys.prefills()), MOST_KEYS)
    return [key.instance for key in map(keys.parse, listed) if isinstance(key, PrefillKey)]


def _offer(ctx: click.Context, incomplete: str, names: Callable[[EtcdAdmin, Keys], Awaitable[list[str]]]) -> list[str]:
    """The names that begin so; none where anything at all is wrong: a shell's prompt is no place for errors."""
    try:
        found = asyncio.run(asyncio.wait_for(_ask(ctx, names), PATIENCE_SECONDS))
    except Exception:
        return []
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete) and name.isprintable()][:MOST_NAMES]


async def _ask(ctx: click.Context, names: Callable[[EtcdAdmin, Keys], Awaitable[list[str]]]) -> list[str]:
    from ..store.admin import EtcdAdmin

    values: dict[str, Any] = dict(ctx.params)
    fill_in(values, lambda name: ctx.get_parameter_source(name) is not ParameterSource.DEFAULT)
    async with EtcdAdmin(build_settings(EtcdSettings, values)) as store:
        return await names(store, Keys(values["root"]))
