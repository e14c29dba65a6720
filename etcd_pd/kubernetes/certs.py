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
from .api import Api, Object, update
from .authority import Identity, Pair, issue, make_authority, valid_until, why_not
from .settings import CertSettings

log = logging.getLogger(__name__)

#: Argo CD and Flux would take a Secret that no chart renders for a leftover: these keep them off.
ANNOTATIONS = {
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "argocd.argoproj.io/sync-options": "Prune=false",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
}


class AuthorityLost(EtcdPDError):
    """The authority's Secret is gone, and what it signed is there: a new one would be a stranger to all that run."""


class AuthorityEnds(EtcdPDError):
    """The authority ends before a certificate would: a person must replace it, since everything trusts it by name."""


def keep_certificates(settings: CertSettings, secrets: Api, now: datetime | None = None) -> list[str]:
    """Make what is missing or about to end; the names of the Secrets that were written.

    Raises:
        AuthorityLost: there is none, and there are certificates.
        AuthorityEnds: the authority does not last as long as a new certificate.
        KubernetesError: the API server refused or did not answer.
    """
    now = now or datetime.now(timezone.utc)
    keeper = _Keeper(settings, secrets, now)
    identities = _identities(settings)
    # looked for before the authority: whoever makes both at the same moment makes that one first
    orphans = [secret for secret in identities if _pair_in(secrets.get("secrets", secret))]
    authority = keeper.keep_authority(orphans)
    for secret, identity in identities.items():
        keeper.keep(secret, identity, authority)
    return keeper.written


def _identities(settings: CertSettings) -> dict[str, Identity]:
    """Who needs a certificate, by its Secret."""
    found = {}
    if settings.server_secret:
        found[settings.server_secret] = Identity(settings.server_names[0], settings.server_names)
    for word in settings.client_secrets:
        user, _, secret = word.partition("=")
        found[secret] = Identity(user)
    return found


class _Keeper:
    def __init__(self, settings: CertSettings, secrets: Api, now: datetime) -> None:
        self._settings, self._secrets, self._now = settings, secrets, now
        self.written: list[str] = []

    def keep_authority(self, orphans: list[str]) -> Pair:
        """The authority; a new one only where there are no certificates, which would be its predecessor's."""
        secret = self._settings.authority_secret

        def renewed(pair: Pair | None) -> tuple[Pair, bytes] | None:
            if pair is not None:
                return None
            if orphans:
                raise AuthorityLost(
                    f"Secret {secret} has no authority any more, but {', '.join(orphans)} have its certificates: put "
                    "it back from a backup, or delete all of them and start over (docs/operations.md, Certificates)"
                )
            name = f"etcd-pd {secret}"
            made = make_authority(name, self._now, timedelta(days=self._settings.authority_validity_days))
            return made, made.certificate

        authority = self._update(secret, renewed)
        if valid_until(authority.certificate) < self._now + timedelta(days=self._settings.validity_days):
            raise AuthorityEnds(
                f"the authority in Secret {secret} ends at "
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
        """Keep what is in a Secret, or write what ``renew`` makes of it; the one that is there then."""
        kept: Pair | None = None

        def changed(found: Object | None) -> Object | None:
            nonlocal kept
            kept = _pair_in(found)
            made = renew(kept)
            if made is not None:
                kept = made[0]
                return self._secret(name, *made, found)
            assert found is not None
            return None if _annotations(found).items() >= ANNOTATIONS.items() else _annotated(found)

        if update(self._secrets, "secrets", name, changed) is not None:
            self.written.append(name)
        assert kept is not None
        return kept

    def _secret(self, name: str, pair: Pair, authority: bytes, found: Object | None) -> Object:
        data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority}
        labels = dict(word.split("=", 1) for word in self._settings.secret_labels)
        new = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls"}
        metadata = {"metadata": {"name": name, "labels": labels}}
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        return _annotated({**new, **metadata, **(found or {}), "data": encoded})


def _annotations(secret: Object) -> dict[str, str]:
    return secret["metadata"].get("annotations") or {}


def _annotated(secret: Object) -> Object:
    return {**secret, "metadata": {**secret["metadata"], "annotations": {**_annotations(secret), **ANNOTATIONS}}}


def _pair_in(secret: Object | None) -> Pair | None:
    data = (secret or {}).get("data") or {}
    if not (data.get("tls.crt") and data.get("tls.key")):
        return None
    return Pair(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))
