"""Certificates are renewed, end, and lose their authority, on a living release."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from etcd_pd.kubernetes.authority import Identity, Pair, issue
from tests.support.waiting import wait_until

from .conftest import MakeRelease
from .kube import Object
from .load import ETCD_LOST
from .release import ONE_ENGINE, STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]

IDENTITIES = ("etcd", "root", "prefill", "decode")


@pytest.fixture(scope="module")
def cell(make_release: MakeRelease) -> Iterator[Release]:
    """A release of three members."""
    with make_release("certified").installed(ONE_ENGINE) as release:
        yield release


def test_requests_are_right_when_every_certificate_is_renewed(cell: Release) -> None:
    before = serial_numbers(cell)
    cell.kube.kubectl("delete", "secret", *(f"{cell.full}-{name}-tls" for name in IDENTITIES))
    with cell.load() as load:
        run_certs(cell, "renewed")
        cell.kube.kubectl("wait", "--for=condition=complete", "job/renewed", "--timeout=100s", seconds=120)
        wait_until(lambda: load.lasted > 20, "requests end", STEP_SECONDS, every=0.5)
    after = serial_numbers(cell)
    assert all(before[name] != after[name] for name in IDENTITIES)
    assert load.wrong() == []


def test_requests_end_in_time_and_come_right_when_every_certificate_has_ended(cell: Release) -> None:
    with cell.load() as load:
        for name in IDENTITIES:
            end(cell, name)
        # what was read of the old ones goes with the processes
        cell.kube.kubectl("delete", "pod", "--selector", cell.selector("etcd"))
        left = load.lasted
        wait_until(lambda: load.lasted > left + 30, "members start with them", STEP_SECONDS, every=0.5)
        assert not cell.kube.get("statefulset", f"{cell.full}-etcd")["status"].get("readyReplicas")
        run_certs(cell, "ended")
        cell.await_ready()
    serial_numbers(cell)
    assert load.wrong(ETCD_LOST) == []
    with cell.load() as load:
        wait_until(lambda: load.lasted > 5, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong() == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tls": {"enabled": False}, "auth": {"enabled": False}}, "would get none"),
        ({"tls": {"existingSecrets": dict.fromkeys(IDENTITIES, "other")}}, "would get Secret other"),
    ],
)
def test_an_upgrade_is_refused_when_members_would_not_reach_each_other(
    cell: Release, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(AssertionError, match=said):
        cell.install({**ONE_ENGINE, **values})


def test_no_authority_is_made_when_it_is_lost_and_starting_over_brings_another(cell: Release) -> None:
    cell.kube.kubectl("delete", "secret", f"{cell.full}-ca")
    before = serial_numbers(cell)
    run_certs(cell, "lost")
    wait_until(
        lambda: "has no authority any more" in cell.kube.logs("job/lost"), "the Job says why", STEP_SECONDS, every=0.5
    )
    cell.kube.kubectl("delete", "job", "lost")
    assert serial_numbers(cell) == before
    with cell.load() as load:
        cell.follow_guide("Certificates")
        cell.await_ready()
        wait_until(lambda: load.lasted > 20, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong(ETCD_LOST) == []
    with cell.load() as load:
        wait_until(lambda: load.lasted > 5, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong() == []


def run_certs(release: Release, name: str) -> None:
    """The CronJob's Job, now."""
    release.kube.kubectl("create", "job", f"--from=cronjob/{release.full}-certs", name)


def end(release: Release, name: str) -> None:
    """Put a certificate like the one that is there, which ended yesterday, into its Secret."""
    secret = release.kube.get("secret", f"{release.full}-{name}-tls")
    found = certificate_in(secret)
    common_name = str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    names: tuple[str, ...] = ()
    if name == "etcd":
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(each.value) for each in alternatives)
    authority = release.kube.get("secret", f"{release.full}-ca")["data"]
    signs = Pair(base64.b64decode(authority["tls.crt"]), base64.b64decode(authority["tls.key"]))
    made = issue(signs, Identity(common_name, names), datetime.now(timezone.utc) - timedelta(days=2), timedelta(days=1))
    pair = {"tls.crt": made.certificate, "tls.key": made.key}
    data = {key: base64.b64encode(value).decode() for key, value in pair.items()}
    release.kube.apply({**secret, "data": {**secret["data"], **data}})


def certificate_in(secret: Object) -> x509.Certificate:
    """That of a Secret."""
    return x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))


def serial_numbers(release: Release) -> dict[str, int]:
    """Those of the certificates that are there, none of which has ended."""
    found = {}
    for name in IDENTITIES:
        certificate = certificate_in(release.kube.get("secret", f"{release.full}-{name}-tls"))
        assert certificate.not_valid_after_utc > datetime.now(timezone.utc)
        found[name] = certificate.serial_number
    return found
