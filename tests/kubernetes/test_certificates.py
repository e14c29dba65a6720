"""Certificates are renewed, end, and lose their authority, on a living release."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
from cryptography import x509

from tests.support.waiting import wait_until

from .conftest import MakeRelease
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


def serial_numbers(release: Release) -> dict[str, int]:
    """Those of the certificates that are there, none of which has ended."""
    found = {}
    for name in IDENTITIES:
        secret = release.kube.get("secret", f"{release.full}-{name}-tls")
        certificate = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
        assert certificate.not_valid_after_utc > datetime.now(timezone.utc)
        found[name] = certificate.serial_number
    return found
