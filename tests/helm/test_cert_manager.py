"""cert-manager's Certificates in place of the chart's own Job; only rendered: no test has run cert-manager."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart import NAMESPACE, RELEASE, SHAPES, Object, Objects, container, environment, rendered, template

pytestmark = pytest.mark.helm

ISSUER = {"name": "etcd", "kind": "ClusterIssuer", "group": "cert-manager.io"}
VALUES: dict[str, Any] = {"tls": {"certManager": {"issuer": {"name": "etcd", "kind": "ClusterIssuer"}}}}
EXTERNAL = {"etcd": {"external": {"endpoints": ["https://etcd:2379"]}}}


def _certificates(values: dict[str, Any]) -> dict[str, Object]:
    """What each certificate is to say, by its Secret."""
    found = Objects(template(values=values)).of("Certificate")
    assert {(each["apiVersion"], each["metadata"]["namespace"]) for each in found} == {
        ("cert-manager.io/v1", NAMESPACE)
    }
    return {each["spec"]["secretName"].removeprefix(f"{RELEASE}-etcd-pd-"): each["spec"] for each in found}


def test_each_identity_has_a_certificate_when_there_is_an_issuer() -> None:
    found = _certificates(VALUES)
    assert set(found) == {"etcd-tls", "root-tls", "prefill-tls", "decode-tls"}
    for spec in found.values():
        assert spec["issuerRef"] == ISSUER
        assert (spec["duration"], spec["renewBefore"]) == ("8760h", "720h")
        assert spec["privateKey"] == {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"}
    for user in ("root", "prefill", "decode"):
        spec = found[f"{user}-tls"]
        assert spec["commonName"] == user and spec["usages"] == ["digital signature", "client auth"]
        assert "dnsNames" not in spec and "ipAddresses" not in spec


def test_the_members_certificate_has_the_same_names_when_cert_manager_makes_it() -> None:
    spec = _certificates(VALUES)["etcd-tls"]
    job = next(pod for where, pod in rendered("cpu").pods() if "-certs-" in where)
    names = environment(container(job, "certs"))["ETCD_PD_SERVER_NAMES"].split(",")
    assert spec["ipAddresses"] == ["127.0.0.1"]
    # the defaults have three members, as that shape
    assert set(spec["dnsNames"]) == set(names) - {"127.0.0.1"}
    assert spec["usages"] == ["digital signature", "server auth", "client auth"]


def test_every_mounted_secret_is_made_when_cert_manager_makes_them() -> None:
    objects = Objects(template(values=VALUES))
    made = {each["spec"]["secretName"] for each in objects.of("Certificate")}
    mounted = {
        volume["secret"]["secretName"]
        for _, pod in objects.pods()
        for volume in pod["spec"].get("volumes", ())
        if "secret" in volume
    }
    assert mounted == made


def test_the_chart_makes_no_certificate_when_cert_manager_does() -> None:
    objects = Objects(template(values=VALUES))
    assert not [each for each in objects.all if "-certs" in each["metadata"]["name"]]
    assert "etcd-pd-ca" not in objects.text


@pytest.mark.parametrize("shape", SHAPES)
def test_there_is_none_when_no_issuer_is_named(shape: str) -> None:
    assert not rendered(shape).of("Certificate")


def test_there_is_none_when_tls_is_off() -> None:
    plain = {"tls": {"enabled": False, **VALUES["tls"]}, "auth": {"passwordSecret": "users"}}
    assert not Objects(template(values=plain)).of("Certificate")


@pytest.mark.parametrize(("init", "wanted"), [(True, {"root", "prefill", "decode"}), (False, {"prefill", "decode"})])
def test_clients_alone_have_certificates_when_etcd_is_external(init: bool, wanted: set[str]) -> None:
    values = {**VALUES, **EXTERNAL, "auth": {"init": init}}
    assert set(_certificates(values)) == {f"{name}-tls" for name in wanted}
