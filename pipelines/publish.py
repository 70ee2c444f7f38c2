"""The last thing that is done to every picture and video that a model made: say so, inside the file.

`publish(path)` adds plain metadata (the comment of an mp4, text chunks of a PNG) and content credentials
(C2PA), signed with the certificate of the user, else with one of this installation. Everything that hands
generated pictures to somebody calls it once per file, after writing the file; `ready(marking)` once before
the work begins, so that a wrong certificate is refused while nothing is written yet.

Bytes of a signed file differ every time, its pixels do not.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import certificates, credentials
from infra.certificates import Signer
from infra.paths import expanded

log = logging.getLogger(__name__)

CERTIFICATE, PRIVATE_KEY = "PV3D_CERTIFICATE", "PV3D_PRIVATE_KEY"
SYNTHETIC = "Synthetic: made by a generative model, not a recording."
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Marking:
    """How generated files are marked."""

    credentials: bool = True
    """False writes the plain metadata alone."""
    certificate: Path | None = None
    """PEM chain, leaf first; $PV3D_CERTIFICATE unless given, else the local one signs."""
    private_key: Path | None = None
    """Its PEM key; $PV3D_PRIVATE_KEY unless given."""


MARKED = Marking()
PLAIN = Marking(credentials=False)
"""For what is kept with a run, where equal work gives equal bytes."""


def ready(marking: Marking = MARKED) -> None:
    """Raise ValueError for a certificate that cannot sign; make the local one where it is missing."""
    _signer(marking)


def publish(path: Path, about: Mapping[str, object] | None = None, marking: Marking = MARKED) -> None:
    """Mark an mp4 or a PNG as synthetic, in place: whole and marked, or as it was.

    `about`: what to tell of its making, such as model and seed; no paths, they name people.
    Raises ValueError as `ready` does, and for a file of another kind.
    """
    told = {key: str(value) for key, value in (about or {}).items()}
    signer = _signer(marking)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        if path.suffix.lower() == ".mp4":
            _mark_mp4(path, temporary, told)
        elif path.suffix.lower() == ".png":
            temporary.write_bytes(marked_png(path.read_bytes(), told))
        else:
            raise ValueError(f"{path}: only mp4 and png can be marked as synthetic; write one of them")
        if signer is not None:
            data, kind = temporary.read_bytes(), credentials.FORMATS[path.suffix.lower()]
            temporary.write_bytes(credentials.sign(data, kind, signer, told))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def comment(about: Mapping[str, str]) -> str:
    """What the plain metadata say."""
    details = ", ".join(f"{key} {value}" for key, value in about.items())
    return f"{SYNTHETIC} {maker()}{': ' + details if details else ''}"


def maker() -> str:
    """This program and its version."""
    return f"pv3d {importlib.metadata.version('pv3d-pipeline')}"


def marked_png(data: bytes, about: Mapping[str, str]) -> bytes:
    """The PNG with text chunks after its header. Raises ValueError for what is no PNG."""
    if not data.startswith(PNG):
        raise ValueError("no PNG: its signature is missing")
    end = 8 + 12 + struct.unpack(">I", data[8:12])[0]
    texts = {"Comment": comment(about), "Software": maker(), "Source": "trainedAlgorithmicMedia"}
    chunks = b"".join(_itxt(key, text) for key, text in texts.items())
    return data[:end] + chunks + data[end:]


def _itxt(key: str, text: str) -> bytes:
    """A chunk of text in UTF-8."""
    body = b"iTXt" + key.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _mark_mp4(path: Path, to: Path, about: Mapping[str, str]) -> None:
    """Copy the streams as they are into a file with metadata."""
    import av

    with (
        av.open(str(path)) as source,
        av.open(str(to), "w", format="mp4", options={"movflags": "+faststart"}) as target,
    ):
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        target.metadata.update(source.metadata)
        target.metadata["comment"] = comment(about)
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)


def _signer(marking: Marking) -> Signer | None:
    """Who signs; None where nobody does."""
    if not marking.credentials:
        return None
    given = [
        str(value or os.environ.get(name) or "")
        for value, name in ((marking.certificate, CERTIFICATE), (marking.private_key, PRIVATE_KEY))
    ]
    return _signer_of(*given, certificates.config_folder())


@functools.cache
def _signer_of(certificate: str, private_key: str, folder: Path) -> Signer | None:
    if bool(certificate) != bool(private_key):
        missing = "private key" if certificate else "certificate"
        raise ValueError(f"{certificate or private_key}: its {missing} is not given; give both, or neither")
    if not credentials.available():
        if certificate:
            raise ValueError(
                f"certificate {certificate}: nothing here can sign; install pv3d-pipeline[sign], or write "
                "plain metadata alone with --no-credentials"
            )
        log.warning("no content credentials: install pv3d-pipeline[sign]; plain metadata say it alone")
        return None
    if certificate:
        signer = certificates.user_signer(expanded(certificate), expanded(private_key))
        try:
            credentials.check(signer)
        except credentials.CredentialsError as error:
            raise ValueError(f"certificate {certificate}: is not one that can sign ({error})") from None
        return signer
    try:
        return certificates.local_signer(folder)
    except OSError as error:
        why = error.strerror or str(error)
        log.warning("no content credentials: %s cannot keep a certificate (%s)", folder, why)
        return None
