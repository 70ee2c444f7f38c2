"""What a picture or video says of how it was made: `pv3d inspect FILE`."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from infra import certificates, credentials
from infra.credentials import FORMATS, CredentialsError, Found
from pipelines.publish import PNG, SYNTHETIC

TEXTS = (b"tEXt", b"iTXt")
TAGS = ("title", "comment", "description", "copyright")


def inspect_file(path: Path) -> tuple[dict[str, Any], str]:
    """Credentials and plain metadata. Raises ValueError for a missing file, and for other kinds."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: can tell of {', '.join(sorted(FORMATS))} alone; give one of them")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no file; give a picture or video")
    try:
        plain = _plain(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a picture or video") from None
    answer: dict[str, Any] = {
        "file": str(path), "metadata": plain, "synthetic": any(SYNTHETIC in text for text in plain.values()),
    }  # fmt: skip
    if not credentials.available():
        line = "content credentials: not looked for; install pv3d-pipeline[sign]"
        return {**answer, "credentials": None}, _text(path, line, plain)
    try:
        with path.open("rb") as file:
            found = credentials.read(file, kind)
    except CredentialsError as error:
        raise ValueError(f"{path}: cannot be read as {kind} ({error}); is it whole?") from None
    if found is None:
        return {**answer, "credentials": "none"}, _text(path, "content credentials: none", plain)
    own = found.serial == certificates.local_serial()
    answer |= {
        "credentials": "valid" if found.valid else "invalid", "signed_by": found.signed_by,
        "signed_here": own, "made_by": found.made_by, "faults": list(found.faults),
        "synthetic": answer["synthetic"] or found.synthetic,
    }  # fmt: skip
    return answer, _text(path, _told(found, own), plain)


def _told(found: Found, own: bool) -> str:
    state = "valid: the file is as it was signed" if found.valid else f"NOT VALID ({', '.join(found.faults)})"
    who = "this user's own certificate" if own else "nobody has vouched for the name here"
    made = "made by a generative model" if found.synthetic else "says nothing of a generative model"
    lines = (state, f"{found.signed_by} ({who})", f"{made}, {found.made_by}")
    names = ("content credentials", "signed by", "they say")
    return "\n".join(f"{name}: {line}" for name, line in zip(names, lines, strict=True))


def _text(path: Path, line: str, plain: dict[str, str]) -> str:
    texts = [f"metadata {key}: {text}" for key, text in plain.items()] or ["metadata: none of its making"]
    return "\n".join([str(path), line, *texts])


def _plain(path: Path) -> dict[str, str]:
    """Tags of a video, text chunks of a PNG. Raises OSError, and ValueError for what is broken."""
    with path.open("rb") as file:
        start = file.read(8)
    if start == PNG:
        return _png_texts(path)
    if path.suffix.lower() != ".mp4":
        return {}
    import av

    try:
        # its kind is not guessed: a playlist would lead to other files
        with av.open(str(path), format="mp4") as container:
            tags = container.metadata
            return {key: str(tags[key]) for key in TAGS if key in tags}
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        cause = type(error).__name__
        raise ValueError(f"{path}: cannot be read as a video ({cause}); is it whole?") from None


def _png_texts(path: Path) -> dict[str, str]:
    """Text chunks before the picture."""
    found: dict[str, str] = {}
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            length = struct.unpack(">I", head[:4])[0]
            if head[4:] not in TEXTS or length > 1 << 16:
                file.seek(length + 4, 1)
                continue
            key, _, text = file.read(length).partition(b"\0")
            if head[4:] == b"iTXt":
                flag, text = text[:1], text[2:].split(b"\0", 2)[-1]
                text = _inflated(text) if flag == b"\1" else text
            found[key.decode("latin-1")] = text.decode("utf-8", "replace")
            file.seek(4, 1)
    return found


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, 1 << 16)
    except zlib.error:
        return b""
