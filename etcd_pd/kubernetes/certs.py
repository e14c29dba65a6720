"""``etcd-pd certs``: an authority for one etcd and a certificate for each identity, in Secrets.

It may run at any time, and twice at once: what is there and good stays, what is missing or about to end is made. A
Secret has the keys that cert-manager writes too: ``tls.crt``, ``tls.key``, ``ca.crt``.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from ..errors import EtcdPDError
from .api import Api, Object, ObjectConflict
from .authority import Identity, Pair, issue, make_authority, valid_until, why_not
from .settings import CertSettings

log = logging.getLogger(__name__)

#: Attempts at one Secret that others change at the same time.
ATTEMPTS = 5


class AuthorityEnds(EtcdPDError):
    """The authority ends before a certificate would: a person must replace it, since everything trusts it by name."""


def keep_certificates(settings: CertSettings, secrets: Api, now: datetime | None = None) -> list[str]:
    """Make what is missing or about to end; the names of the Secrets that were written.

    Raises:
        AuthorityEnds: the authority does not last as long as a new certificate.
        KubernetesError: the API server refused or did not answer.
    """
    now = now or datetime.now(timezone.utc)
    keeper = _Keeper(settings, secrets, now)
    authority = keeper.keep_authority()
    if settings.server_secret:
        identity = Identity(settings.server_names[0], settings.server_names)
        keeper.keep(settings.server_secret, identity, authority)
    for word in settings.client_secrets:
        user, _, secret = word.partition("=")
        keeper.keep(secret, Identity(user), authority)
    return keeper.written


class _Keeper:
    def __init__(self, settings: CertSettings, secrets: Api, now: datetime) -> None:
        self._settings, self._secrets, self._now = settings, secrets, now
        self.written: list[str] = []

    def keep_authority(self) -> Pair:
        def renewed(pair: Pair | None) -> tuple[Pair, bytes] | None:
            if pair is not None:
                return None
            name = f"etcd-pd {self._settings.authority_secret}"
            made = make_authority(name, self._now, timedelta(days=self._settings.authority_validity_days))
            return made, made.certificate

        authority = self._update(self._settings.authority_secret, renewed)
        if valid_until(authority.certificate) < self._now + timedelta(days=self._settings.validity_days):
            raise AuthorityEnds(
                f"the authority in Secret {self._settings.authority_secret} ends at "
                f"{valid_until(authority.certificate):%Y-%m-%d}: replace it (docs/operations.md, Certificates)"
            )
        return authority

    def keep(self, secret: str, identity: Identity, authority: Pair) -> None:
        spare = timedelta(days=self._settings.renew_before_days)

        def renewed(pair: Pair | None) -> tuple[Pair, bytes] | None:
            reason = "there is none" if pair is None else why_not(pair, authority, identity, self._now, spare)
            if not reason:
                return None
            log.info("making certificate secret=%s user=%s: %s", secret, identity.common_name, reason)
            made = issue(authority, identity, self._now, timedelta(days=self._settings.validity_days))
            return made, authority.certificate

        self._update(secret, renewed)

    def _update(self, name: str, renew: Callable[[Pair | None], tuple[Pair, bytes] | None]) -> Pair:
        """Read a Secret, and write what ``renew`` makes of it, until nobody interferes."""
        for _ in range(ATTEMPTS):
            found = self._secrets.get("secrets", name)
            pair = _pair_in(found)
            made = renew(pair)
            if made is None:
                assert pair is not None
                return pair
            body = self._secret(name, made[0], made[1], found)
            try:
                (self._secrets.replace if found else self._secrets.create)("secrets", body)
            except ObjectConflict:
                log.info("secret=%s changed meanwhile", name)
                continue
            self.written.append(name)
            return made[0]
        raise ObjectConflict(f"Secret {name} changed {ATTEMPTS} times meanwhile", 409)

    def _secret(self, name: str, pair: Pair, authority: bytes, found: Object | None) -> Object:
        data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority}
        labels = dict(word.split("=", 1) for word in self._settings.secret_labels)
        new = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls"}
        metadata = {"metadata": {"name": name, "labels": labels}}
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        return {**new, **metadata, **(found or {}), "data": encoded}


def _pair_in(secret: Object | None) -> Pair | None:
    data = (secret or {}).get("data") or {}
    if "tls.crt" not in data or "tls.key" not in data:
        return None
    return Pair(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))
