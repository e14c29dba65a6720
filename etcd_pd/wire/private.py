"""The way to a socket or a file that nobody else may have put there."""

from __future__ import annotations

import os
import stat

from ..errors import ConfigError


def check_way(field: str, path: str) -> None:
    """Refuse a path that leads through what another user made where everybody may make things, such as /tmp.

    Whoever made a directory there decides who listens in it; links are looked at, not followed.

    Raises:
        ConfigError: a part of the path belongs neither to this process's user nor to root.
    """
    part = os.path.abspath(path)
    while (above := os.path.dirname(part)) != part:
        try:
            found, place = os.lstat(part), os.stat(above)
        except OSError:
            pass  # it is not there yet: whoever makes it looks again
        else:
            anybody = place.st_mode & stat.S_IWOTH and place.st_mode & stat.S_ISVTX
            if anybody and found.st_uid not in (os.getuid(), 0):
                raise ConfigError(field, f"{part} belongs to uid {found.st_uid}, who could answer in an agent's place")
        part = above


def open_private(path: str, field: str = "socket") -> int:
    """A descriptor of a file of this user's own for reading and writing, made where it is missing; links are refused.

    Raises:
        OSError: it is a link, or cannot be opened.
        ConfigError: it belongs to somebody else.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    owner = os.fstat(descriptor).st_uid
    if owner != os.getuid():
        os.close(descriptor)
        raise ConfigError(field, f"{path} belongs to uid {owner}")
    return descriptor
