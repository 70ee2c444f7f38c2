"""Named weight files of other people: where from, under which licence, and which bytes they must be.

A file is looked for in the folder that PV3D_WEIGHTS names, then in the cache. None of them is ours.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.paths import expanded

_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
_I3D = (
    "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/"
    "1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt"
)
_YUNET = "https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/master/onnx/yunet_n_dynamic.onnx"
_LANDMARKER = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/"
    "face_landmarker/float16/1/face_landmarker.task"
)
_CANONICAL = (
    "https://raw.githubusercontent.com/google-ai-edge/mediapipe/master/"
    "mediapipe/modules/face_geometry/data/canonical_face_model.obj"
)
_BLOCK = 1 << 20

# What torch raises on a file that is damaged, or holds more than tensors.
UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, pickle.UnpicklingError,
)


class WeightsError(ValueError):
    """A weight file is missing or is another file; the message is one line with the cure."""


@dataclass(frozen=True)
class WeightFile:
    """One weight file."""

    name: str                                # short, for the command line
    file: str                                # name of the file
    use: str                                 # what it is for
    source: str                              # page to read, or package to install
    licence: str
    url: str = ""                            # direct download, when there is one
    sha256: str = ""                         # "" while nobody has pinned it
    size: int = 0                            # bytes
    package: str = ""                        # import name of a PyPI package that holds it, in `folder`
    folder: str = ""
    torch_hub: bool = False                  # its library takes no path and reads torch's own cache


def _dlib(name: str, file: str, use: str, sha256: str, size: int, licence: str) -> WeightFile:
    return WeightFile(
        name, file, use, "PyPI: face-recognition-models (installed by pv3d-pipeline[dlib])", licence,
        sha256=sha256, size=size, package="face_recognition_models", folder="models",
    )  # fmt: skip


FILES: tuple[WeightFile, ...] = (
    WeightFile(
        "i3d", "i3d_torchscript.pt", "metric fvd: I3D logits, Kinetics-400 (TorchScript)",
        "https://huggingface.co/flateon/FVD-I3D-torchscript",
        "a conversion of DeepMind's I3D (Apache-2.0); trained on Kinetics-400",
        url=_I3D, sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2", size=51235320,
    ),
    WeightFile(
        "inception", "inception-2015-12-05.pt", "metrics fid, kid: Inception v3 features (TorchScript)",
        "https://github.com/NVlabs/stylegan2-ada-pytorch",
        "NVIDIA Source Code License: non-commercial; trained on ImageNet",
        url=_NVIDIA + "inception-2015-12-05.pt",
        sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4", size=95607719,
    ),
    WeightFile(
        "lpips", "vgg16.pt", "metric lpips: VGG-16 features (TorchScript)",
        "https://github.com/NVlabs/stylegan2-ada-pytorch",
        "NVIDIA Source Code License: non-commercial; trained on ImageNet",
        url=_NVIDIA + "vgg16.pt",
        sha256="b437eb095feaeb0b83eb3fa11200ebca4548ee39a07fb944a417ddc516cc07c3",
    ),
    WeightFile(
        "arcface", "model_ir_se50.pth", "metric id: ArcFace IR-SE50 (a state dict; docs/evaluation.md)",
        "https://github.com/TreB1eN/InsightFace_Pytorch", "MIT (code); trained on MS-Celeb-1M",
        url=_DRIVE + "1KW7bjndL3QG3sxBbZxreGHigcCCpsDgn",
        sha256="a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28", size=175367323,
    ),
    WeightFile(
        "yunet", "yunet_n_dynamic.onnx", "backend yunet: face boxes and five points",
        "https://github.com/ShiqiYu/libfacedetection.train", "Apache-2.0", url=_YUNET,
        sha256="104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12", size=322906,
    ),
    WeightFile(
        "mediapipe", "face_landmarker_v2_with_blendshapes.task", "backend mediapipe: 478-point mesh",
        "https://github.com/google-ai-edge/mediapipe", "Apache-2.0", url=_LANDMARKER,
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff", size=3758596,
    ),
    WeightFile(
        "canonical-face", "canonical_face_model.obj", "backend mediapipe: where its points lie on a head",
        "https://github.com/google-ai-edge/mediapipe", "Apache-2.0", url=_CANONICAL,
        sha256="8bac80443397e113f41a8b565ea72c59390bc031d9defab289dba7bc0c54e618", size=45999,
    ),
    WeightFile(
        "fan", "2DFAN4-11f355bf06.pth.tar", "backend fan: 68 landmarks",
        "https://github.com/1adrianb/face-alignment",
        "BSD-3-Clause (code); trained on 300W-LP: non-commercial", torch_hub=True,
        url="https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar",
    ),
    WeightFile(
        "mobilefacenet", "foamliu_mobilefacenet.onnx", "backend mobilefacenet: 128 numbers of identity",
        "https://github.com/foamliu/MobileFaceNet (converted to ONNX)", "Apache-2.0; trained on MS-Celeb-1M",
        sha256="b7120c095d60094f28a4a54ba6a8bf51b297a6273fb40ef6350dfec1f63d9507", size=3998070,
    ),
    WeightFile(
        "arcface-onnx", "w600k_r50.onnx", "backend arcface: 512 numbers of identity",
        "https://github.com/deepinsight/insightface (model package buffalo_l)",
        "non-commercial research; trained on WebFace600K",
    ),
    WeightFile(
        "deep3d", "epoch_20.pth", "cameras by deep3d: head pose of Deep3DFaceReconstruction",
        "https://github.com/sicxu/Deep3DFaceRecon_pytorch", "MIT; trained with the Basel Face Model",
    ),
    _dlib(
        "dlib-landmarks", "shape_predictor_68_face_landmarks.dat", "backend dlib: 68 landmarks",
        "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f", 99693937,
        "trained on 300-W: non-commercial",
    ),
    _dlib(
        "dlib-identity", "dlib_face_recognition_resnet_model_v1.dat", "backend dlib: 128 numbers of identity",
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30", 22466066, "CC0-1.0",
    ),
)  # fmt: skip


def cache() -> Path:
    """The folder that `fetch` writes to."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pv3d" / "weights"


def folders() -> list[Path]:
    """Where weight files are looked for, in order."""
    named = os.environ.get("PV3D_WEIGHTS")
    return [*([expanded(named)] if named else []), cache()]


def torch_hub() -> Path:
    """Where torch keeps the files that libraries of its own download: $TORCH_HOME/hub/checkpoints."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("TORCH_HOME") or f"{base}/torch") / "hub" / "checkpoints"


def places(known: WeightFile) -> list[Path]:
    """The folders that a file is looked for in, in order; `fetch` writes to the last."""
    return [torch_hub()] if known.torch_hub else folders()


def entry(name: str) -> WeightFile:
    """The entry of a short name or a file name. Raises WeightsError."""
    for known in FILES:
        if name in (known.name, known.file):
            return known
    names = ", ".join(known.name for known in FILES)
    raise WeightsError(f"weights {name!r}: not in the table; known: {names}")


def find(name: str) -> Path | None:
    """Where the file lies, by short name or file name; None when it is missing. It is not read."""
    known = next((known for known in FILES if name in (known.name, known.file)), None)
    file = known.file if known else name
    for folder in places(known) if known else folders():
        if (folder / file).is_file():
            return folder / file
    if known and known.package:
        spec = importlib.util.find_spec(known.package)  # not imported: it needs a setuptools of long ago
        for place in (spec.submodule_search_locations or []) if spec else []:
            if Path(place, known.folder, file).is_file():
                return Path(place, known.folder, file)
    return None


def require(name: str) -> Path:
    """Where the file lies, checked against its sha256. Raises WeightsError naming file and cure."""
    known = entry(name)
    path = find(name)
    if path is None:
        looked = " and ".join(str(folder) for folder in places(known))
        raise WeightsError(f"weights file {known.file} missing in {looked}; {_cure(known)}")
    check(path, known)
    return path


def require_all(names: Sequence[str]) -> None:
    """Look for all of them at once. Raises WeightsError naming those that are missing; reads none."""
    missing = [name for name in dict.fromkeys(names) if find(name) is None]
    if not missing:
        return
    known = {file.name: file for file in FILES}
    told = [f"{known[n].file} ({_cure(known[n])})" if n in known else f"{n} (put it there)" for n in missing]
    looked = dict.fromkeys(str(folder) for n in missing for folder in _places(n))
    what = "file" if len(missing) == 1 else "files"
    raise WeightsError(f"weights {what} missing in {' and '.join(looked)}: {', '.join(told)}")


def _places(name: str) -> list[Path]:
    return next((places(known) for known in FILES if name in (known.name, known.file)), folders())


def _cure(known: WeightFile) -> str:
    if known.package:
        return f"from {known.source}"
    if known.torch_hub:
        return f"get it there from {known.url} ({known.licence}); nothing is downloaded unasked"
    if known.url and known.sha256:
        return f"`pv3d weights fetch {known.name}` brings it ({known.licence})"
    return "see `pv3d weights list`"


def check(path: Path, known: WeightFile, sha256: str | None = None) -> str:
    """The file's sha256. Raises WeightsError when another one is pinned."""
    found = digest(path)
    wanted = sha256 or known.sha256
    if wanted and found != wanted.lower():
        raise WeightsError(
            f"weights file {path}: its sha256 is {found}, not {wanted}; remove this file, it is another one"
        )
    return found


def digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def fetch(name: str, sha256: str | None = None, tell: Callable[[int], None] = lambda count: None) -> Path:
    """Download a file into the cache and check it; a file that is there and right stays. `tell` gets bytes.

    Raises WeightsError when there is no link, nothing to check it against, or when it is another file.
    """
    known = entry(name)
    path = places(known)[-1] / known.file
    if not (sha256 or known.sha256):
        raise WeightsError(
            f"weights {known.name}: its sha256 is not pinned; give the one you trust with --sha256"
        )
    if path.is_file():
        check(path, known, sha256)
        return path
    if not known.url:
        folder = path.parent
        raise WeightsError(f"weights {known.name}: no direct link; get it from {known.source} into {folder}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"weights {known.name}: no folder {path.parent} ({error.strerror})") from None
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(known.url, timeout=60) as answer, part.open("wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                tell(len(block))
        check(part, known, sha256)
        part.replace(path)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        cause = getattr(error, "reason", error)
        raise WeightsError(
            f"weights {known.name}: cannot download {known.url} ({cause}); or put it there by hand: {path}"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return path
