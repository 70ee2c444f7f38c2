"""Content credentials (C2PA): a signed statement in a picture or video of how it was made.

The library is optional: the extra `sign`.
"""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import dataclass
from typing import Any, BinaryIO

from infra.certificates import Signer

MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
GENERATOR = "pv3d"
FORMATS = {
    ".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}  # fmt: skip
# Thumbnails would be larger than the picture; trust lists are downloaded, and nothing here asks a network.
SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_trust": False, "remote_manifest_fetch": False},
}


@dataclass(frozen=True)
class Found:
    """What the credentials of a file say."""

    valid: bool
    """The file is as it was signed."""
    signed_by: str
    """Of the certificate: whoever made the certificate chose this name."""
    serial: str
    synthetic: bool
    """It says that a trained model made the whole of it."""
    made_by: str
    faults: tuple[str, ...] = ()


def available() -> bool:
    """Whether the libraries that sign are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("c2pa", "cryptography"))


class CredentialsError(Exception):
    """The library refuses: one line of its own words."""


def sign(data: bytes, format: str, signer: Signer, about: dict[str, str]) -> bytes:
    """The file with a manifest that says that a trained model made it. Other bytes on every call: random
    signatures.

    `about`: what else to say, such as the model and the seed. Raises CredentialsError.
    """
    import c2pa

    manifest = {
        "claim_generator_info": [{"name": GENERATOR, "version": _version()}],
        "format": format,
        "assertions": [
            {"label": "c2pa.actions.v2",
             "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": MADE}]}},
            {"label": "org.pv3d.made", "data": about},
        ],
    }  # fmt: skip
    to = io.BytesIO()
    info = c2pa.C2paSignerInfo(signer.algorithm.encode(), signer.chain, signer.key, None)
    try:
        with _context() as context, c2pa.Signer.from_info(info) as by:
            builder = c2pa.Builder(json.dumps(manifest), context)
            builder.sign(by, format, io.BytesIO(data), to)
    except c2pa.C2paError as error:
        raise CredentialsError(_words(error)) from None
    return to.getvalue()


def read(file: BinaryIO, format: str) -> Found | None:
    """The credentials in a file; None when there are none. Raises CredentialsError for a broken file."""
    import c2pa

    try:
        with _context() as context:
            reader = c2pa.Reader(format, file, None, context)
            state, store = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        raise CredentialsError(_words(error)) from None
    manifest = store.get("manifests", {}).get(store.get("active_manifest"), {})
    signature = manifest.get("signature_info") or {}
    codes = [str(fault.get("code")) for fault in store.get("validation_status") or []]
    kept = dict.fromkeys(code for code in codes if code != "signingCredential.untrusted")
    makers = manifest.get("claim_generator_info") or [{}]
    return Found(
        valid=state in ("Valid", "Trusted"),
        signed_by=_names(signature),
        serial=str(signature.get("cert_serial_number", "")),
        synthetic=any(action.get("digitalSourceType") == MADE for action in _actions(manifest)),
        made_by=" ".join(str(makers[0].get(key)) for key in ("name", "version") if makers[0].get(key)),
        faults=tuple(kept),
    )


def _actions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    labelled = [a for a in manifest.get("assertions") or [] if str(a.get("label")).startswith("c2pa.actions")]
    return [action for a in labelled for action in (a.get("data") or {}).get("actions") or []]


def _names(signature: dict[str, Any]) -> str:
    """Common name and organisation, once each."""
    names = [signature.get("common_name"), signature.get("issuer")]
    return ", ".join(dict.fromkeys(str(name) for name in names if name)) or "nobody named"


def _context() -> Any:
    import c2pa

    return c2pa.Context.from_dict(SETTINGS)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pv3d-pipeline")
    except PackageNotFoundError:
        return "0"


def check(signer: Signer) -> None:
    """Sign something small. Raises CredentialsError for a certificate that C2PA does not take."""
    sign(_PIXEL, "image/png", signer, {})


# The smallest picture that can be signed: 1 x 1 px, black.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a4944415478da6360000000020001e527defc0000000049454e44ae426082"
)
