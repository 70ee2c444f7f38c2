"""Feature networks of metrics, in files that hold their own code: TorchScript or ONNX.

A file is either the listed one of `pv3d weights` (its sha256 is checked before it is opened), or one that the
user names by path (`evaluate.networks`). Only the listed one gives a figure its plain name (`fvd`); any other
gives `fvd/<file stem>`, so that no number ever stands under another network's name.

TorchScript is a program: PyTorch says to treat a file as code from whoever made it, and there is no safe way
to open one from a stranger. So none is opened by its place alone: it has the listed sha256, or the user named
it. ONNX files hold a graph and no code. State dicts and other pickles are refused unread: nothing here says
which network they belong to; export the network to TorchScript or ONNX.

One video goes through a network at a time, whatever else is evaluated: results do not depend on batches,
workers or the order of videos.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import weights
from infra.weights import WeightsError

Run = Callable[..., NDArray[Any]]

OPTIONS = {
    "rescale": False, "resize": False, "resize_images": False, "return_features": True, "return_lpips": True,
}  # fmt: skip
"""What a TorchScript network is told, where its `forward` knows the argument: pictures come as the metric
prepared them, and features are wanted, not classes."""


@dataclass(frozen=True)
class Network:
    """One file. Small: it travels to workers, which open it themselves, once."""

    name: str
    """Of its entry in the table of weights: what it is used as."""
    path: Path
    sha256: str
    listed: bool
    """It is the file of the table, byte for byte."""

    def figure(self, name: str) -> str:
        """What a figure is called that this network gives: `name` only for the listed file."""
        return name if self.listed else f"{name}/{stem(self.path)}"

    def __call__(self, *inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The answer to one video or picture. Raises WeightsError for a file that takes something else, or
        whose answer is not finite."""
        answer = _opened(self.path, self.sha256)(*inputs)
        if not np.isfinite(answer).all():
            raise WeightsError(f"weights file {self.path}: gives numbers that are not finite; take another")
        return np.asarray(answer, np.float32)

    @property
    def side(self) -> int | None:
        """The height that an ONNX file insists on, px; None when it takes any."""
        return _side(self.path, self.sha256)


def stem(path: Path) -> str:
    """A file's name without its ending, as a part of a figure's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem)


def find_network(name: str, networks: Mapping[str, str], found: Path | None) -> Network | None:
    """The network of an entry: the file that `networks` names, else `found`, the listed one; None for none.

    Raises WeightsError for a named file that is missing, and for a listed one with other bytes.
    """
    known = weights.entry(name)
    given = networks.get(name)
    if given:
        path = Path(given).expanduser().absolute()           # a worker has a folder of its own
        if not path.is_file():
            raise WeightsError(f"evaluate.networks.{name}: no file {given}; give the path of one")
        sha256 = weights.digest(path)
        return Network(name, path, sha256, listed=bool(known.sha256) and sha256 == known.sha256)
    if found is None:
        return None
    return Network(name, found, weights.check(found, known), listed=bool(known.sha256))


def missing(name: str) -> str:
    """The reason for a figure whose network is not here."""
    return f"weights file {weights.entry(name).file} missing; see `pv3d weights list`, or set " \
        f"evaluate.networks.{name}"  # fmt: skip


def state_dict(path: Path) -> bool:
    """Whether a file holds tensors without the network that they belong to."""
    if path.suffix == ".onnx":
        return False
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as archive:
        return not any("/code/" in name for name in archive.namelist())


def check_form(path: Path) -> None:
    """Raise WeightsError for a file that holds no network."""
    if state_dict(path):
        raise WeightsError(
            f"weights file {path}: is neither TorchScript nor ONNX; export the network that its numbers "
            "belong to, and name that file"
        )


@functools.lru_cache(maxsize=4)
def _opened(path: Path, sha256: str) -> Run:
    """The network of a file, in this process. `sha256` must still be the file's."""
    if not path.is_file():
        raise WeightsError(f"weights file {path}: is not on this machine; put it there")
    if weights.digest(path) != sha256:
        raise WeightsError(f"weights file {path}: has changed since the evaluation began; start it again")
    return _onnx(path) if path.suffix == ".onnx" else _torchscript(path)


def _side(path: Path, sha256: str) -> int | None:
    run = _opened(path, sha256)
    side = getattr(run, "side", None)
    return side if isinstance(side, int) else None


class _Onnx:
    """An ONNX file, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        from stages.backends.onnx_identity import open_session

        self._path, self._session = path, open_session(path)
        self._names = [given.name for given in self._session.get_inputs()]
        last = self._session.get_inputs()[0].shape[-1]
        self.side = last if isinstance(last, int) else None

    def __call__(self, *inputs: NDArray[np.float32]) -> NDArray[Any]:
        from stages.backends.onnx_identity import UNREADABLE

        if len(inputs) != len(self._names):
            takes = f"takes {len(self._names)} inputs, not {len(inputs)}"
            raise WeightsError(f"weights file {self._path}: {takes}")
        try:
            return np.asarray(self._session.run(None, dict(zip(self._names, inputs, strict=True)))[0])
        except UNREADABLE as error:
            raise _misfit(self._path, inputs, error) from None


def _onnx(path: Path) -> Run:
    return _Onnx(path)


def _torchscript(path: Path) -> Run:
    import torch

    check_form(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        network = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        known = {argument.name for argument in network.forward.schema.arguments}
    except (RuntimeError, AttributeError) as error:
        cause = str(error).strip().splitlines()[0][:120]
        raise WeightsError(f"weights file {path}: torch cannot read it ({cause})") from None
    options = {name: value for name, value in OPTIONS.items() if name in known}

    def run(*inputs: NDArray[np.float32]) -> NDArray[Any]:
        tensors = [torch.from_numpy(np.ascontiguousarray(given)).to(device) for given in inputs]
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        try:
            with torch.inference_mode(), exact:
                answer = network(*tensors, **options)
        except (RuntimeError, ValueError, torch.jit.Error) as error:
            raise _misfit(path, inputs, error) from None
        if isinstance(answer, torch.Tensor) and answer.is_complex():
            raise WeightsError(f"weights file {path}: answers with complex numbers")
        if not isinstance(answer, torch.Tensor):
            raise WeightsError(f"weights file {path}: answers with a {type(answer).__name__}, not a tensor")
        return np.asarray(answer.float().cpu().numpy())

    return run


def _misfit(path: Path, inputs: tuple[NDArray[np.float32], ...], error: Exception) -> WeightsError:
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or ["no reason given"]
    shapes = " and ".join(str(list(given.shape)) for given in inputs)
    return WeightsError(f"weights file {path}: does not take {shapes} ({lines[-1].strip()[:120]})")
