"""How far a made picture is from a real one, for the optimiser.

`lpips`: squared distance of the features of the listed network (`pv3d weights list`), a TorchScript file;
`perceptual/<file>`: the same of another file that the user names. Without one the perceptual part is

    gradients   L1 of the differences between neighbouring pixels, at full, half, quarter ... size

which asks for edges in their places. It is no LPIPS and not called so. The pixel part is the mean squared
error and the L1 error at those sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 8                     # px, of the smallest size
NETWORK_SIDE = 256               # px, of what a network sees at most


class Loss:
    """`name` is what the perceptual part is: lpips, perceptual/<file> or gradients."""

    def __init__(self, network: Path | None = None, device: Any = "cpu") -> None:
        """`network`: a TorchScript file in place of the listed one, which is taken when it is there.

        Raises ValueError for a file that is none, and for a listed one with other bytes.
        """
        from infra import weights
        from stages.metrics.lpips import LPIPS
        from stages.metrics.networks import find_network

        named = {} if network is None else {LPIPS: str(network)}
        found = find_network(LPIPS, named, weights.find(LPIPS))
        self._network: Any = None
        self.name = "gradients"
        if found is not None:
            self.name = found.figure("lpips") if found.listed else f"perceptual/{found.path.stem}"
            self._network = _opened(found.path, device)

    def __call__(self, made: Tensor, real: Tensor, pixel: float, perceptual: float) -> Tensor:
        """made, real [N, 3, H, W] about [-1, 1] -> one number."""
        sizes = _pyramid(made, real)
        flat = sum((a - b).abs().mean() for a, b in sizes) / len(sizes)
        total = pixel * (F.mse_loss(made, real) + flat)
        if self._network is None:
            return total + perceptual * sum(_edges(a, b) for a, b in sizes) / len(sizes)
        seen = [self._features(picture) for picture in (made, real.detach())]
        return total + perceptual * (seen[0] - seen[1]).square().sum(dim=1).mean()

    def _features(self, picture: Tensor) -> Tensor:
        if picture.shape[-1] > NETWORK_SIDE:
            picture = F.interpolate(picture, size=(NETWORK_SIDE,) * 2, mode="area")
        features: Tensor = self._network((picture + 1) * 127.5)
        return features.flatten(1)


def _pyramid(made: Tensor, real: Tensor) -> list[tuple[Tensor, Tensor]]:
    sizes = [(made, real)]
    while sizes[-1][0].shape[-1] >= 2 * SMALLEST:
        sizes.append((F.avg_pool2d(sizes[-1][0], 2), F.avg_pool2d(sizes[-1][1], 2)))
    return sizes


def _edges(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    across = difference[..., :, 1:] - difference[..., :, :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def _opened(path: Path, device: Any) -> Any:
    """A network [N, 3, H, W] of levels 0 to 255 -> features, that gradients pass through."""
    from stages.metrics.networks import OPTIONS, state_dict

    if path.suffix == ".onnx" or state_dict(path):
        raise ValueError(f"--perceptual {path}: is no TorchScript; export the network to it")
    try:
        network = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        known = {argument.name for argument in network.forward.schema.arguments}
    except (RuntimeError, AttributeError) as error:
        cause = str(error).strip().splitlines()[0][:120]
        raise ValueError(f"--perceptual {path}: torch cannot read it ({cause})") from None
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    options = {name: value for name, value in OPTIONS.items() if name in known}

    def features(levels: Tensor) -> Tensor:
        try:
            answer = network(levels, **options)
        except RuntimeError as error:
            cause = str(error).strip().splitlines()[-1][:120]
            raise ValueError(f"--perceptual {path}: does not take {list(levels.shape)} ({cause})") from None
        if not isinstance(answer, Tensor):
            raise ValueError(f"--perceptual {path}: answers with a {type(answer).__name__}, not a tensor")
        return answer

    return features
