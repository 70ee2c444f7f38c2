"""Certificates that sign content credentials: the user's own, or one that is made here once.

The local one is a leaf whose authority is thrown away as soon as it has issued it. Its signature proves by
which installation a file was written, not who that is.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.paths import expanded

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

LOCAL_NAME = "pv3d local certificate"
YEARS = 10
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Signer:
    """A certificate chain, leaf first, and its private key, both PEM."""

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    algorithm: str


def config_folder() -> Path:
    """Of this user: $XDG_CONFIG_HOME/pv3d, ~/.config/pv3d unless set."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return (expanded(given) if Path(given).is_absolute() else expanded("~/.config")) / "pv3d"


def user_signer(certificate: Path, private_key: Path) -> Signer:
    """A certificate of the user's. Raises ValueError naming the file that is no good, and why."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    pem = _read("certificate", certificate)
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError(f"certificate {certificate}: is no PEM chain; give one, leaf first") from None
    data = _read("private key", private_key)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise ValueError(f"private key {private_key}: is encrypted; give one without a passphrase") from None
    except ValueError:
        raise ValueError(f"private key {private_key}: is no PEM private key; give one") from None
    if _public(key.public_key()) != _public(chain[0].public_key()):
        raise ValueError(f"private key {private_key}: is not that of {certificate}; give both of one signer")
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Signer(pem, plain, _algorithm(private_key, key))


def local_signer(folder: Path | None = None) -> Signer:
    """This user's own, made when it is wanted first and when it has expired.

    Raises OSError where it cannot be kept.
    """
    place = (folder or config_folder()) / "credentials"
    found = _load(place)
    if found is None:
        _make(place)
        found = _load(place)
    if found is None:
        raise OSError(f"{place} holds no certificate that is good")
    return found


def local_serial(folder: Path | None = None) -> str | None:
    """The serial number of this user's certificate, if there is one."""
    path = (folder or config_folder()) / "credentials" / "certificate.pem"
    leaf = _leaf(path)
    return None if leaf is None else str(leaf.serial_number)


def serial(signer: Signer) -> str:
    """The serial number of a signer's leaf certificate."""
    from cryptography import x509

    return str(x509.load_pem_x509_certificates(signer.chain)[0].serial_number)


def _read(what: str, path: Path) -> bytes:
    try:
        return expanded(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path}: cannot be read ({error.strerror}); give a PEM file") from None


def _public(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    found: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def _algorithm(path: Path, key: PrivateKeyTypes) -> str:
    """C2PA's name of the signature that a key makes."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        name = CURVES.get(key.curve.name)
    else:
        name = {ed25519.Ed25519PrivateKey: "ed25519", rsa.RSAPrivateKey: "ps256"}.get(
            next((c for c in (ed25519.Ed25519PrivateKey, rsa.RSAPrivateKey) if isinstance(key, c)), object)
        )
    if name is None:
        raise ValueError(f"private key {path}: C2PA has no signature of its kind; give P-256, Ed25519 or RSA")
    return name


def _leaf(path: Path) -> x509.Certificate | None:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError):
        return None


def _load(place: Path) -> Signer | None:
    """The local signer; None when there is none, or it can no longer sign."""
    leaf = _leaf(place / "certificate.pem")
    if leaf is None or leaf.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        return None
    try:
        return Signer((place / "certificate.pem").read_bytes(), (place / "key.pem").read_bytes(), "es256")
    except OSError:
        return None


def _make(place: Path) -> None:
    """Write a new key and chain in one go: of two who do so at once, one wins and both use it."""
    chain, key = _issue()
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as folder:
        new = Path(folder, "credentials")
        new.mkdir(mode=0o700)
        (new / "certificate.pem").write_bytes(chain)
        with os.fdopen(os.open(new / "key.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
        if place.exists() and _load(place) is None:     # expired, or half of it was removed
            place.rename(Path(folder, "old"))
        with contextlib.suppress(OSError):                  # somebody was quicker
            new.rename(place)


def _issue() -> tuple[bytes, bytes]:
    """Chain (leaf, authority) and the leaf's key, PEM. The authority's key is not kept: C2PA refuses a leaf
    that signed itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def named(name: str) -> x509.Name:
        return x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, name),
             x509.NameAttribute(NameOID.ORGANIZATION_NAME, "self-issued by pv3d")]
        )  # fmt: skip

    mark = secrets.token_hex(4)                          # tells installations apart, and names nobody
    root, leaf = named(f"{LOCAL_NAME} authority {mark}"), named(f"{LOCAL_NAME} {mark}")

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))   # clocks differ
            .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
            .add_extension(_usage(ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
            )
        )
        if not ca:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(authority, hashes.SHA256())

    chain = [certificate(leaf, key.public_key(), False), certificate(root, authority.public_key(), True)]
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _usage(ca: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip
