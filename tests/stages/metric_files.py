"""Networks of random weights in files, as a user's, and an ONNX file without an exporter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


class VideoNetwork(torch.nn.Module):
    """[1, 3, T, H, W] -> [1, features], random, of random weights."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.first = torch.nn.Conv3d(3, 8, 3, stride=2)          # of every eighth pixel: quick
        self.last = torch.nn.Linear(8, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x[..., ::8, ::8])).mean(dim=(2, 3, 4)))


class PictureNetwork(torch.nn.Module):
    """[N, 3, H, W], levels -> [N, features]; knows `return_features`, as the listed Inception."""

    def __init__(self, features: int = 5) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.last = torch.nn.Linear(8, features)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = torch.relu(self.first(img / 255)).mean(dim=(2, 3))
        return self.last(x) if return_features else x[:, :1]


def script(folder: Path, network: torch.nn.Module, name: str = "net.pt") -> Path:
    path = folder / name
    torch.jit.save(torch.jit.script(network.eval()), str(path))
    return path


def seeded(make: type[torch.nn.Module], seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return make()


def videos(count: int, seed: int = 0, frames: int = 16, side: int = 32) -> list[np.ndarray]:
    """Smooth videos, each other than the rest."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, frames, 4, 4, 3))
    return list(coarse.repeat(side // 4, axis=2).repeat(side // 4, axis=3).astype(np.uint8))


# --- ONNX ---------------------------------------------------------------------------------------------------


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def value_info(name: str, shape: list[int | str]) -> bytes:
    sides = [field(1, field(2, s.encode()) if isinstance(s, str) else field(1, s)) for s in shape]
    return field(1, name.encode()) + field(2, field(1, field(1, 1) + field(2, b"".join(sides))))


def onnx_mean(path: Path, shape: list[int | str], axes: list[int]) -> Path:
    """An ONNX file whose network is the mean over some axes, which are dropped."""
    ints = b"".join(field(8, axis) for axis in axes)
    attributes = field(5, field(1, b"axes") + ints + field(20, 7))
    attributes += field(5, field(1, b"keepdims") + field(3, 0) + field(20, 2))
    node = field(1, b"x") + field(2, b"y") + field(4, b"ReduceMean") + attributes
    left: list[int | str] = [side for axis, side in enumerate(shape) if axis not in axes]
    graph = field(1, node) + field(2, b"g") + field(11, value_info("x", shape))
    graph += field(12, value_info("y", left))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))
    return path
