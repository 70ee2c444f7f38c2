import datetime
import stat
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("c2pa")
cv2 = pytest.importorskip("cv2")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

from infra import certificates, credentials  # noqa: E402
from pipelines import publish as module  # noqa: E402
from pipelines.inspect_file import inspect_file  # noqa: E402
from pipelines.publish import SYNTHETIC, Marking, publish, ready  # noqa: E402
from stages.video import probe, read_all, write_video  # noqa: E402


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch) -> Path:
    """A user who never signed anything."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (module.CERTIFICATE, module.PRIVATE_KEY):
        monkeypatch.delenv(name, raising=False)
    module._signer_of.cache_clear()
    return tmp_path / "config" / "pv3d" / "credentials"


@pytest.fixture
def video(tmp_path) -> Path:
    random = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", random.integers(0, 255, (12, 64, 64, 3), np.uint8), 25.0)
    return tmp_path / "a.mp4"


@pytest.fixture
def picture(tmp_path) -> Path:
    cv2.imwrite(str(tmp_path / "a.png"), np.arange(3 * 64 * 64, dtype=np.uint8).reshape(64, 64, 3))
    return tmp_path / "a.png"


def issued(folder: Path, name: str, key, days: int = 30) -> Marking:
    """A certificate of somebody's, by an authority of theirs."""
    authority = ec.generate_private_key(ec.SECP256R1())
    root, leaf = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (f"{name} root", name))
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
         "encipher_only", "decipher_only", "key_cert_sign"), False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder().subject_name(leaf).issuer_name(root).public_key(key.public_key())
        .serial_number(7).not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
        .sign(authority, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.pem").write_bytes(made.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, *plain))
    return Marking(certificate=folder / f"{name}.pem", private_key=folder / f"{name}.key")


@pytest.mark.parametrize("name", ["video", "picture"])
def test_a_published_file_says_what_it_is_and_shows_the_same_pixels(name, request, config):
    path = request.getfixturevalue(name)
    read = (lambda: np.stack([f for _, f in read_all(path)])) if name == "video" else (
        lambda: cv2.imread(str(path)))  # fmt: skip
    before = read()
    publish(path, {"seed": 3})
    np.testing.assert_array_equal(read(), before)
    found, text = inspect_file(path)
    assert (found["credentials"], found["signed_here"], found["synthetic"]) == ("valid", True, True)
    assert "this user's own certificate" in text
    told = found["metadata"]["comment" if name == "video" else "Comment"]
    assert told.startswith(SYNTHETIC)
    assert "seed 3" in told
    assert [p.name for p in path.parent.glob(".tmp-*")] == []


def test_times_and_size_of_a_published_video_stay(video):
    before = probe(video)
    publish(video)
    assert probe(video) == before


def test_the_local_key_is_made_once_for_this_user_alone(picture, config):
    publish(picture)
    key = config / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = key.read_bytes()
    module._signer_of.cache_clear()
    publish(picture)
    assert key.read_bytes() == made
    assert sorted(p.name for p in config.parent.iterdir()) == ["credentials"]


def test_a_certificate_that_has_expired_is_replaced(config, monkeypatch):
    monkeypatch.setattr(certificates, "YEARS", -1 / 400)
    with pytest.raises(OSError, match="no certificate that is good"):
        certificates.local_signer()
    old = (config / "certificate.pem").read_bytes()
    monkeypatch.setattr(certificates, "YEARS", 1)
    assert certificates.local_signer().chain != old


def test_a_changed_file_is_found_out(video):
    publish(video)
    data = bytearray(video.read_bytes())
    data[data.index(b"mdat") + 400] ^= 1
    video.write_bytes(data)
    found, text = inspect_file(video)
    assert found["credentials"] == "invalid"
    assert "NOT VALID (assertion.bmffHash.mismatch)" in text


def test_the_users_own_certificate_signs(picture, tmp_path, monkeypatch, config):
    one = issued(tmp_path, "Ada", ed25519.Ed25519PrivateKey.generate())
    publish(picture, marking=one)
    found, text = inspect_file(picture)
    assert (found["credentials"], found["signed_here"]) == ("valid", False)
    assert "signed by: Ada" in text
    other = issued(tmp_path, "Bob", ec.generate_private_key(ec.SECP384R1()))
    monkeypatch.setenv(module.CERTIFICATE, str(other.certificate))
    monkeypatch.setenv(module.PRIVATE_KEY, str(other.private_key))
    publish(picture)
    assert inspect_file(picture)[0]["signed_by"].startswith("Bob")
    assert not config.exists()


def test_a_certificate_that_cannot_sign_is_one_line_before_anything_is_written(tmp_path):
    good = issued(tmp_path, "Ada", ec.generate_private_key(ec.SECP256R1()))
    other = issued(tmp_path, "Bob", ec.generate_private_key(ec.SECP256R1()))
    expired = issued(tmp_path, "Old", ec.generate_private_key(ec.SECP256R1()), days=-5)
    curve = issued(tmp_path, "Odd", ec.generate_private_key(ec.SECP256K1()))
    (tmp_path / "text").write_text("hello")
    for marking, what in (
        (Marking(certificate=good.certificate), "its private key is not given"),
        (Marking(certificate=tmp_path / "none", private_key=good.private_key), "cannot be read"),
        (Marking(certificate=tmp_path / "text", private_key=good.private_key), "is no PEM chain"),
        (Marking(certificate=good.certificate, private_key=tmp_path / "text"), "is no PEM private key"),
        (Marking(certificate=good.certificate, private_key=other.private_key), "is not that of"),
        (expired, "is not one that can sign"),
        (curve, "C2PA has no signature of its kind"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            ready(marking)
        assert "\n" not in str(caught.value)


def test_no_credentials_leaves_the_plain_words(picture, config):
    publish(picture, marking=Marking(credentials=False))
    found, text = inspect_file(picture)
    assert (found["credentials"], found["synthetic"]) == ("none", True)
    assert "content credentials: none" in text
    assert not config.exists()


def test_without_the_library_one_line_warns_and_plain_words_stay(picture, video, monkeypatch, caplog):
    monkeypatch.setattr(credentials, "available", lambda: False)
    publish(picture)
    publish(video)
    (line,) = [record.message for record in caplog.records]
    assert "install pv3d-pipeline[sign]" in line
    found, text = inspect_file(video)
    assert (found["credentials"], found["synthetic"]) == (None, True)
    assert "not looked for" in text


def test_a_home_that_cannot_keep_a_key_is_one_warning(picture, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    publish(picture)
    publish(picture)
    (line,) = [record.message for record in caplog.records]
    assert "cannot keep a certificate" in line
    assert inspect_file(picture)[0]["credentials"] == "none"


def test_a_file_that_cannot_be_marked_stays_as_it_was(tmp_path):
    for name in ("a.gif", "a.png"):
        (tmp_path / name).write_bytes(b"GIF89a")
        with pytest.raises(ValueError, match=r"png|PNG"):
            publish(tmp_path / name)
        assert [p.read_bytes() for p in tmp_path.glob("*a.*")] == [b"GIF89a"]
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.txt", b"", "can tell of"),
        ("a.mp4", None, "cannot be read"),
        ("a.mp4", b"hello", "is it whole"),
        ("a.png", b"hello", "is it whole"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(name, data, what, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=what) as caught:
        inspect_file(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_ordinary_file_has_none(video):
    found, text = inspect_file(video)
    assert (found["credentials"], found["synthetic"]) == ("none", False)
    assert "content credentials: none" in text
