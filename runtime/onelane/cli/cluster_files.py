"""The files of mutual TLS between machines, made for trying: an authority, and a certificate for each machine.

Whoever has an authority of their own signs with that: `core/machine_links` says which name a certificate needs.
Promises: no file is overwritten, and none but the user may read one; nothing is written where one is in the way.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from onelane.core.machine_links import certificate_name
from onelane.errors import BadConfig

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

VALID_DAYS = 365
CLOCK_SKEW = timedelta(hours=1)
"""By how much the clock of a machine may be behind the one on which its certificate is made."""
AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca.key"


@dataclass(frozen=True, slots=True)
class MadeFiles:
    """What was written."""

    folder: Path
    machines: tuple[str, ...]
    has_new_authority: bool
    files: tuple[Path, ...] = field(default=())


def make_files(folder: Path, cluster: str, machines: Sequence[str]) -> MadeFiles:
    """A certificate and a key for each machine, signed by the authority of the folder, which is made where there is
    none.

    Raises:
        BadConfig: the package cryptography is missing, a file is in the way, or the authority cannot be used.
    """
    _check_package()
    names = [name for machine in machines for name in (f"{machine}.pem", f"{machine}.key")]
    has_authority = [(folder / name).exists() for name in (AUTHORITY, AUTHORITY_KEY)]
    names += [] if all(has_authority) else [AUTHORITY, AUTHORITY_KEY]
    if in_the_way := [str(folder / name) for name in names if (folder / name).exists()]:
        raise BadConfig("cluster init", [f"{path} is there already, and is not overwritten" for path in in_the_way])
    authority = _read_authority(folder) if all(has_authority) else _Authority.made(cluster)
    texts: dict[str, bytes] = {} if all(has_authority) else authority.files()
    for machine in machines:
        texts |= authority.issue(machine, cluster)
    return MadeFiles(folder, tuple(machines), not all(has_authority), _write(folder, texts))


def _check_package() -> None:
    try:
        import cryptography.x509  # noqa: F401
    except ImportError:
        raise BadConfig(
            "cluster init", ["the package cryptography is missing: pip install 'onelane[cluster]'"]
        ) from None


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: "Certificate"
    key: "EllipticCurvePrivateKey"

    @classmethod
    def made(cls, cluster: str) -> "_Authority":
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509 import BasicConstraints, SubjectKeyIdentifier

        key, name = ec.generate_private_key(ec.SECP256R1()), _name(f"machines of {cluster}")
        builder = _builder(name, name, key, datetime.now(UTC) + timedelta(days=VALID_DAYS))
        builder = builder.add_extension(BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(_signs_certificates(), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    def files(self) -> dict[str, bytes]:
        return {AUTHORITY: _pem(self.certificate), AUTHORITY_KEY: _key_pem(self.key)}

    def issue(self, machine: str, cluster: str) -> Mapping[str, bytes]:
        """The files of a machine."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509 import (
            AuthorityKeyIdentifier,
            BasicConstraints,
            DNSName,
            ExtendedKeyUsage,
            SubjectAlternativeName,
        )
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key, until = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC) + timedelta(days=VALID_DAYS)
        builder = _builder(
            _name("a machine"), self.certificate.subject, key, min(until, self.certificate.not_valid_after_utc)
        )
        names = SubjectAlternativeName([DNSName(certificate_name(machine, cluster))])
        both_ends = ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        signer = AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(BasicConstraints(ca=False, path_length=None), critical=True)
        for extension in (names, both_ends, signer):
            builder = builder.add_extension(extension, critical=False)
        return {f"{machine}.pem": _pem(builder.sign(self.key, hashes.SHA256())), f"{machine}.key": _key_pem(key)}


def _builder(subject: "Name", issuer: "Name", key: "EllipticCurvePrivateKey", until: datetime) -> "CertificateBuilder":
    from cryptography.x509 import CertificateBuilder, random_serial_number

    builder = CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(random_serial_number()).not_valid_before(datetime.now(UTC) - CLOCK_SKEW)
    return builder.not_valid_after(until)


def _signs_certificates() -> "KeyUsage":
    from cryptography.x509 import KeyUsage

    return KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _read_authority(folder: Path) -> _Authority:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    try:
        certificate = load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
        key = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise BadConfig("cluster init", [f"the authority of {folder} cannot be used: {error}"]) from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise BadConfig("cluster init", [f"{folder / AUTHORITY_KEY} is not the key that was made with {AUTHORITY}"])
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise BadConfig("cluster init", [f"{folder / AUTHORITY} has expired: make another authority in another folder"])
    return _Authority(certificate, key)


def _name(text: str) -> "Name":
    from cryptography.x509 import Name, NameAttribute
    from cryptography.x509.oid import NameOID

    return Name([NameAttribute(NameOID.ORGANIZATION_NAME, "onelane"), NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _pem(certificate: "Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(folder: Path, texts: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Raises:
    BadConfig: a file cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in texts.items():
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
    except OSError as error:
        raise BadConfig("cluster init", [f"{error.filename or folder} cannot be written: {error.strerror}"]) from None
    return tuple(folder / name for name in texts)
