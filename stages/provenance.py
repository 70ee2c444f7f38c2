"""What the json of a sample says: everything needed to redo or to audit it, and nothing local or secret.

Besides the fields of `Clip` (arrays as lists; those in members of their own, and biometric ones, left out):

    source, source_id       the video as the list names it, and what is equal for all its names
    dataset, licence, split, identity
    list_row_sha1           of the list's own row; of the listing where there is no row
    source_span_s           first and last second that the clip shows
    listed_span_s, listed_frames, fps_ref       as listed: seconds, [first, end) frames and what they count
    source_resolution       [width, height] px, upright
    crop_quads              [T, 4, 2] source px: NW, SW, SE and NE corner of the crop
    crop_s, crop_t          [T] crop px per source px, [T, 2] source px in the middle of the crop
    sigmas                  every width of smoothing, by stage and setting
    stages, config_sha256   the stages that made it with their settings, and a hash of them
    tools                   versions of the packages that were at work when it was written
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from stages.base import Drop
from stages.clip import Clip
from stages.sources import lists

# Local to a machine or a run, in members of their own, or of use for recognising people elsewhere.
LEFT_OUT = {
    "id", "video", "fingerprint", "aligned", "shard", "cameras", "landmarks", "mesh", "smooth_landmarks",
    "smooth_mesh", "embeddings", "embedding_mean",
}  # fmt: skip
TOOLS = (
    "pv3d-pipeline", "numpy", "scipy", "av", "opencv-python-headless", "yt-dlp", "dlib-bin",
    "face-alignment", "mediapipe", "onnxruntime", "torch",
)  # fmt: skip

_SECRET = re.compile(
    r"(access|auth|id|refresh|session)?[-_]?token|auth(orization)?|sig(nature)?|pass(word|wd)?|pwd|secret|"
    r"(client|app)[-_]?secret|(api|access|private)[-_]?key([-_]?id)?|awsaccesskeyid|key-pair-id|policy|"
    r"credentials?|cookies?|session([-_]?id)?|x-(amz|goog)-.*",
    re.IGNORECASE,
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
# A path of two folders or more, a home, a drive or a share; not a fraction, a date or the end of a URL.
_PATH = re.compile(
    r"(?<![\w.:/\\])(?:/(?:[^\s/\"']+/)+|~[\w.-]*/(?:[^\s/\"']+/)*|(?:[A-Za-z]:|\\)\\(?:[^\s\\\"']+\\)*)"
)
_ABSOLUTE = re.compile(r"/|~[\w.-]*/|[A-Za-z]:\\|\\\\")    # what is a path from its first letter on

History = Sequence[Mapping[str, Any]]


def provenance(clip: Clip, history: History = ()) -> dict[str, Any]:
    """See the head of this file. `history`: the stages up to the one that writes, as `GroupStage.follow`."""
    values, arrays = clip.to_record()
    kept: dict[str, Any] = {name: clean(value) for name, value in values.items() if name not in LEFT_OUT}
    for name, array in arrays.items():
        if name not in LEFT_OUT:
            kept[name] = _rounded(array, 4 if name == "face_boxes" else 6)
    stages = [clean(dict(stage)) for stage in history]
    return {
        **kept, **_place(clip), **_crop(clip),
        "source": public_source(clip),
        "stages": stages,
        "config_sha256": config_hash(history),
        "sigmas": _sigmas(stages),
        "tools": dict(tools()),
    }  # fmt: skip


def config_hash(history: History) -> str:
    """sha256 (hex) of the stages and their settings."""
    return hashlib.sha256(_text([clean(dict(stage)) for stage in history])).hexdigest()


def public_source(clip: Clip) -> str:
    """The video as the list names it, without what is secret or local."""
    return str(clean(clip.source))


def clean(value: Any) -> Any:
    """JSON values without absolute paths (their last part stays) and without credentials of URLs.

    Of a mapping, entries with the name of a secret are left out.
    """
    if isinstance(value, Mapping):
        return {clean(k): clean(v) for k, v in value.items() if not _SECRET.fullmatch(str(k))}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if not isinstance(value, str):
        return value
    parts = _URL.split(value)
    urls = [_clean_url(url) for url in _URL.findall(value)]
    texts = [_PATH.sub("", part) for part in parts]
    if _ABSOLUTE.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return "".join(text + url for text, url in zip(texts, [*urls, ""], strict=True))


def _clean_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme.lower() == "file":
            return parts.path.rpartition("/")[2]
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return ""                            # no address that anybody could follow
    host = parts.netloc.rpartition("@")[2]
    public = [(name, text) for name, text in query if not _SECRET.fullmatch(name)]
    kept = parts.query if len(public) == len(query) else urlencode(public)
    return urlunsplit((parts.scheme, host, parts.path, kept, ""))


def source_id(clip: Clip) -> str:
    """What is equal for all names of one video: as listed, else of its address, else the name itself."""
    if known := clip.listed.get("source_id"):
        return str(known)
    try:
        return lists.source_id(clip.source)
    except Drop:
        return clip.source


@functools.cache
def tools() -> tuple[tuple[str, str], ...]:
    """(package, version) of what is installed here, and of Python."""
    found = [("python", platform.python_version())]
    for name in TOOLS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _place(clip: Clip) -> dict[str, Any]:
    """Where the clip lies in its source."""
    span = clip.listed.get("span", {})
    times = clip.need("frame_times_s")
    listed = [span.get("start_s"), span.get("end_s")]
    row = span.get("row_sha1") or clip.listed.get("row_sha1")
    whole = {"source": clip.source, "dataset": clip.dataset, "listed": clip.listed}
    return {
        "source_id": clean(source_id(clip)),
        "list_row_sha1": row or lists.row_sha1(_text(whole).decode()),
        "source_span_s": [round(float(times[0]), 6), round(float(times[-1]), 6)],
        "listed_span_s": listed if listed != [None, None] else None,
        "listed_frames": span.get("frames"),
        "fps_ref": span.get("fps_ref"),
        "source_resolution": [clip.width, clip.height],
    }


def _crop(clip: Clip) -> dict[str, Any]:
    """Corners, scale and middle of the crop in every frame, from the transform that made it."""
    matrix = clip.need("crop_transforms").astype(np.float64)
    linear, shift = matrix[:, :, :2], matrix[:, :, 2]
    inverse = np.linalg.pinv(linear)         # equal to the inverse, and defined for what is no crop at all
    low, high = -0.5, clip.crop_size - 0.5   # the centre of the first pixel is at 0
    corners = np.array([(low, low), (low, high), (high, high), (high, low)])
    middle = np.full((1, 2), (clip.crop_size - 1) / 2)

    def to_source(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.einsum("tij,tnj->tni", inverse, points[None] - shift[:, None]), np.float64)

    return {
        "crop_quads": _rounded(to_source(corners), 3),
        "crop_s": _rounded(np.sqrt(np.abs(np.linalg.det(linear))), 6),
        "crop_t": _rounded(to_source(middle)[:, 0], 3),
    }


def _sigmas(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{stage['stage']}.{name}": value
        for stage in stages
        for name, value in stage["settings"].items()
        if "sigma" in name
    }


def _rounded(array: NDArray[Any], digits: int) -> Any:
    return np.round(array.astype(np.float64), digits).tolist()


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
