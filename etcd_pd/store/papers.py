"""Certificates and passwords: read when they are needed, so that new ones need no restart."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import grpc

from ..config import EtcdSettings
from ..errors import StoreUnavailable

log = logging.getLogger(__name__)

#: Where Debian keeps the authorities that everybody trusts; used where no ca_file is set.
SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


class Papers:
    """What this process shows etcd, and what it believes.

    A file that cannot be read at the moment (it is being renewed) leaves what was read of it before.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._read: dict[str, bytes] = {}

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel, from the files as they are now.

        Raises:
            StoreUnavailable: one cannot be read, and never could.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=self._bytes(self.authorities),
            private_key=self._bytes(self._settings.key_file),
            certificate_chain=self._bytes(self._settings.cert_file),
        )

    @property
    def authorities(self) -> str:
        """The file of those whose certificates are believed, empty where there is none."""
        return self._settings.ca_file or (SYSTEM_AUTHORITIES if os.path.exists(SYSTEM_AUTHORITIES) else "")

    @property
    def has_secret(self) -> bool:
        """Whether calls carry a token: one that is given, or one that a password gets."""
        return bool(self._settings.username or self._settings.token_file)

    def token(self) -> str:
        """The token that is given, empty where a password gets one.

        Raises:
            StoreUnavailable: its file cannot be read, and never could.
        """
        return (self._bytes(self._settings.token_file) or b"").decode(errors="replace").strip()

    def password(self) -> str:
        """The user's password, from its file where one is set.

        Raises:
            StoreUnavailable: its file cannot be read, and never could.
        """
        found = self._bytes(self._settings.password_file)
        return self._settings.password if found is None else found.decode(errors="replace").rstrip("\r\n")

    def _bytes(self, path: str) -> bytes | None:
        """A file's content; None where no file is set."""
        if not path:
            return None
        try:
            self._read[path] = Path(path).read_bytes()
        except OSError as exc:
            if path not in self._read:
                raise StoreUnavailable("connect", f"cannot read {path!r}: {exc.strerror}") from exc
            log.warning("cannot read %s, going on with what it held before: %s", path, exc.strerror)
        return self._read[path]
