"""Keys and certificates: one authority for etcd alone, and what it signs. Pure: no I/O, and no clock but the one given.

Keys are ECDSA P-256, which etcd and gRPC both take and which are made in a millisecond.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Clocks of a cluster's nodes may differ by this much.
BACKDATE = timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Identity:
    """What a certificate shall say.

    Attributes:
        common_name: for a client, the etcd user that it is.
        names: DNS names and IP addresses of a server; none for a client.
    """

    common_name: str
    names: tuple[str, ...] = ()


def make_authority(common_name: str, now: datetime, valid: timedelta) -> Pair:
    """A new authority, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    usage = _usage(signs=True)
    builder = _builder(name, name, key.public_key(), now, now + valid)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _pair(builder.add_extension(usage, critical=True).sign(key, hashes.SHA256()), key)


def issue(authority: Pair, identity: Identity, now: datetime, valid: timedelta) -> Pair:
    """A new certificate; a member's is used both ways, since members are each other's clients."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(identity.common_name), issuer.subject, key.public_key(), now, now + valid)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity.names:
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(identity.names)), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def why_not(pair: Pair, authority: Pair, identity: Identity, now: datetime, spare: timedelta) -> str:
    """Why a certificate must be made anew; empty where it will do.

    Args:
        spare: how long it must still be valid.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, None)
        issuer = x509.load_pem_x509_certificate(authority.certificate)
    except ValueError as exc:
        return f"it cannot be read: {exc}"
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return "another authority signed it"
    if key.public_key() != certificate.public_key():
        return "its key is another one's"
    if certificate.subject != _name(identity.common_name):
        return f"it is for {certificate.subject.rfc4514_string()}"
    if _names_in(certificate) != set(identity.names):
        return "its names differ"
    if certificate.not_valid_after_utc - now < spare:
        return f"it ends at {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def valid_until(certificate: bytes) -> datetime:
    """The end of a certificate's validity.

    Raises:
        ValueError: it cannot be read.
    """
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(end)
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate.public_bytes(pem), private)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _names_in(certificate: x509.Certificate) -> set[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in extension.value}
