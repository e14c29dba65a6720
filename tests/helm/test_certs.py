"""`etcd-pd certs`: what is there and good stays, what is missing or about to end is made."""

from __future__ import annotations

import copy
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509

from etcd_pd.errors import ConfigError
from etcd_pd.kubernetes.api import ATTEMPTS, Object, ObjectConflict
from etcd_pd.kubernetes.authority import valid_until
from etcd_pd.kubernetes.certs import ANNOTATIONS, AuthorityEnds, AuthorityLost, keep_certificates
from etcd_pd.kubernetes.settings import CertSettings
from tests.helm.secrets import MemoryApi

SETTINGS = CertSettings(
    authority_secret="ca",
    server_secret="etcd",
    server_names=("etcd-0.peers.prod.svc", "127.0.0.1"),
    client_secrets=("root=root-tls", "prefill=prefill-tls"),
    secret_labels=("app.kubernetes.io/instance=cell",),
)
ALL = ["ca", "etcd", "root-tls", "prefill-tls"]
NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def api() -> MemoryApi:
    found = MemoryApi()
    assert keep_certificates(SETTINGS, found, NOW) == ALL
    return found


def test_secrets_look_as_cert_managers_do(api: MemoryApi) -> None:
    for name in ALL:
        secret = api.objects[("secrets", name)]
        assert secret["type"] == "kubernetes.io/tls"
        assert set(secret["data"]) == {"tls.crt", "tls.key", "ca.crt"}
        assert secret["metadata"]["labels"] == {"app.kubernetes.io/instance": "cell"}
        assert secret["metadata"]["annotations"] == ANNOTATIONS
        assert api.data(name)["ca.crt"] == api.data("ca")["tls.crt"]
    assert len({api.data(name)["tls.key"] for name in ALL}) == len(ALL)


def test_certificates_say_who_they_are_for(api: MemoryApi) -> None:
    authority = x509.load_pem_x509_certificate(api.data("ca")["tls.crt"])
    server = x509.load_pem_x509_certificate(api.data("etcd")["tls.crt"])
    client = x509.load_pem_x509_certificate(api.data("prefill-tls")["tls.crt"])
    for each in (server, client):
        each.verify_directly_issued_by(authority)
        assert not each.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["etcd-0.peers.prod.svc", "127.0.0.1"]
    assert client.subject.rfc4514_string() == "CN=prefill"
    purposes = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose._name for purpose in purposes] == ["clientAuth"]


def test_a_second_run_changes_nothing(api: MemoryApi) -> None:
    before = {name: api.data(name) for name in ALL}
    assert keep_certificates(SETTINGS, api, NOW + timedelta(days=300)) == []
    assert {name: api.data(name) for name in ALL} == before


def test_what_is_about_to_end_is_renewed_by_the_same_authority(api: MemoryApi) -> None:
    old = api.data("etcd")
    later = NOW + timedelta(days=340)
    assert keep_certificates(SETTINGS, api, later) == ALL[1:]
    new = api.data("etcd")
    assert new["ca.crt"] == old["ca.crt"]
    assert valid_until(new["tls.crt"]) == later + timedelta(days=365)


@pytest.mark.parametrize("broken", ["names", "key", "garbage", "missing"])
def test_a_certificate_that_will_not_do_is_made_anew(api: MemoryApi, broken: str) -> None:
    settings, secret = SETTINGS, api.objects[("secrets", "etcd")]
    if broken == "names":
        names = (*SETTINGS.server_names, "etcd-1.peers.prod.svc")
        settings = CertSettings(**{**vars(SETTINGS), "server_names": names})
    elif broken == "key":
        secret["data"]["tls.key"] = api.objects[("secrets", "root-tls")]["data"]["tls.key"]
    elif broken == "garbage":
        secret["data"]["tls.crt"] = "AAAA"
    else:
        del api.objects[("secrets", "etcd")]
    assert keep_certificates(settings, api, NOW) == ["etcd"]
    assert keep_certificates(settings, api, NOW) == []


def test_a_secret_keeps_everything_else_when_annotations_are_added(api: MemoryApi) -> None:
    before = api.data("etcd")
    api.objects["secrets", "etcd"]["metadata"]["annotations"] = {
        "mine": "kept",
        "kustomize.toolkit.fluxcd.io/prune": "x",
    }
    del api.objects["secrets", "ca"]["metadata"]["annotations"]
    assert keep_certificates(SETTINGS, api, NOW) == ["ca", "etcd"]
    assert api.data("etcd") == before
    metadata = api.objects["secrets", "etcd"]["metadata"]
    assert metadata["annotations"] == {"mine": "kept", **ANNOTATIONS}
    assert metadata["labels"] == {"app.kubernetes.io/instance": "cell"}
    assert keep_certificates(SETTINGS, api, NOW) == []


@pytest.mark.parametrize("left", [{"etcd", "root-tls", "prefill-tls"}, {"prefill-tls"}])
@pytest.mark.parametrize("empty", [False, True])
def test_a_lost_authority_is_an_error_when_its_certificates_are_there(
    api: MemoryApi, left: set[str], empty: bool
) -> None:
    for name in {"etcd", "root-tls", "prefill-tls"} - left:
        del api.objects["secrets", name]
    if empty:
        api.objects["secrets", "ca"]["data"] = {"tls.crt": "", "tls.key": ""}
    else:
        del api.objects["secrets", "ca"]
    before = copy.deepcopy(api.objects)
    with pytest.raises(AuthorityLost, match=r"Secret ca has no authority any more.*prefill-tls") as raised:
        keep_certificates(SETTINGS, api, NOW)
    assert all(name in str(raised.value) for name in left)
    assert api.objects == before


def test_all_is_made_anew_when_every_secret_was_deleted(api: MemoryApi) -> None:
    before = api.data("ca")
    api.objects.clear()
    assert keep_certificates(SETTINGS, api, NOW) == ALL
    assert api.data("ca") != before


def test_an_authority_that_ends_first_is_an_error_and_not_replaced(api: MemoryApi) -> None:
    before = api.data("ca")
    with pytest.raises(AuthorityEnds, match="Secret ca"):
        keep_certificates(SETTINGS, api, NOW + timedelta(days=3650 - 364))
    assert api.data("ca") == before


class _Twin(MemoryApi):
    """Somebody else makes everything between our looks at the certificates and at the authority."""

    def get(self, kind: str, name: str) -> Object | None:
        if name == "ca" and not self.objects:
            twin = MemoryApi()
            keep_certificates(SETTINGS, twin, NOW)
            self.objects = twin.objects
        return super().get(kind, name)


def test_an_authority_is_not_taken_for_lost_when_somebody_else_makes_it_now() -> None:
    assert keep_certificates(SETTINGS, _Twin(), NOW) == []


class _Raced(MemoryApi):
    """Somebody else runs at the same time and is always a moment faster, some times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def create(self, kind: str, body: Object) -> Object:
        if self.times:
            self.times -= 1
            if self.times == 0:
                super().create(kind, body)
            raise ObjectConflict("exists", 409)
        return super().create(kind, body)


def test_two_at_once_end_with_one_authority() -> None:
    api = _Raced(1)
    assert "ca" not in keep_certificates(SETTINGS, api, NOW)
    authority = x509.load_pem_x509_certificate(api.data("ca")["tls.crt"])
    x509.load_pem_x509_certificate(api.data("etcd")["tls.crt"]).verify_directly_issued_by(authority)


def test_a_secret_that_never_holds_still_is_an_error() -> None:
    with pytest.raises(ObjectConflict):
        keep_certificates(SETTINGS, _Raced(ATTEMPTS + 1), NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"server_secret": "etcd"},
        {"client_secrets": ("root",)},
        {"secret_labels": ("=x",)},
        {"renew_before_days": 365},
        {"validity_days": 3650},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CertSettings(**wrong)  # type: ignore[arg-type]
