"""Deep3DFaceReconstruction's network: head pose of a face from a picture, by a checkpoint of the user.

Written from the layout of the published checkpoint alone: a ResNet-50 (He et al. 2016, the stride in the
3 x 3 convolution) pooled to 2048 numbers, and seven linear heads. Of their 257 outputs only the angle and the
translation are asked for, so no morphable model is needed. The method and the checkpoint are MIT licensed, by
sicxu (Deep3DFaceRecon_pytorch); the morphable model that it was trained with is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from infra import weights
from infra.weights import WeightsError

HEADS = (80, 64, 80, 3, 27, 2, 1)            # identity, expression, texture, angle, light, t_x and t_y, t_z
ANGLE = slice(224, 227)
TRANSLATION = slice(254, 257)
BATCH = 32                                   # pictures at a time


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1 to four times the channels, around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = 4 * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x_NCHW)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x_NCHW))


class ResNet50(nn.Module):
    """[N, 3, H, W] -> [N, 2048, H / 32, W / 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(64, 64, 3, 1)
        self.layer2 = _layer(256, 128, 4, 2)
        self.layer3 = _layer(512, 256, 6, 2)
        self.layer4 = _layer(1024, 512, 3, 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x_NCHW)))
        y = functional.max_pool2d(y, 3, 2, padding=1)
        found: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        return found


def _layer(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(4 * channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(channels_in, channels, stride), *rest)


class Network(nn.Module):
    """[N, 3, 224, 224] in 0 ... 1 -> the 257 coefficients [N, 257]. Names are those of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet50()
        self.final_layers = nn.ModuleList(nn.Conv2d(2048, size, 1) for size in HEADS)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        pooled = self.backbone(x_NCHW).mean(dim=(2, 3), keepdim=True)
        return torch.cat([head(pooled) for head in self.final_layers], dim=1).flatten(1)


def read_checkpoint(path: Path) -> Network:
    """The network with the weights of a published checkpoint; nothing in the file is executed.

    Raises WeightsError, naming the file, for anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except weights.UNREADABLE as error:
        cause = " ".join(str(error).split())[:200]
        raise WeightsError(f"weights file {path}: cannot be read as a checkpoint ({cause})") from None
    state = content.get("net_recon") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"weights file {path}: no entry net_recon; give Deep3DFaceRecon's epoch_20.pth")
    network = Network()
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:300]
        raise WeightsError(f"weights file {path}: its net_recon is another network ({cause})") from None
    return network.eval()


class Deep3D:
    """Estimates head poses on the GPU where there is one; 0.07 s a picture on one CPU core."""

    name: ClassVar[str] = "deep3d"

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = read_checkpoint(weights.require("deep3d")).to(self._device)

    def poses(
        self, pictures: Iterable[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Angles [T, 3] (rad) and translations [T, 3] of uint8 [224, 224, 3] RGB pictures.

        What they mean: `stages.deep3d`. No more than a batch of pictures is held at a time.
        """
        found = [self.coefficients(np.stack(batch)) for batch in _batches(iter(pictures))]
        rows = np.concatenate(found) if found else np.zeros((0, sum(HEADS)), np.float32)
        return rows[:, ANGLE], rows[:, TRANSLATION]

    def coefficients(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, 224, 224, 3] RGB -> float32 [N, 257]."""
        with torch.inference_mode():
            given = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float() / 255
            answer: NDArray[Any] = self._network(given).cpu().numpy()
        return np.asarray(answer, np.float32)


def _batches(pictures: Iterator[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.uint8]]]:
    while batch := list(islice(pictures, BATCH)):
        yield batch
