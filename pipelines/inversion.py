"""Invert a model: find the codes whose frames are the given ones (paper section 4.4).

One w per layer (W+) for the whole clip; for a picture at t = 0, where no motion enters, that is all. For a
video also one motion code per frame, of which only z_m t counts (Eq. 1): that product is what is optimised.

    loss = pixel + perceptual + pull of W+ to the mean w + pull of z_m t to 0 and to its neighbours

The mean latent, from which it starts, is that of the mapping network under the first frame's camera.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.latents import write_whole

if TYPE_CHECKING:
    from model.generator import Generator
    from pipelines.inversion_loss import Loss

MEAN_OF = 2048                   # draws of z, for the mean w and its spread
PEAK = 1e-10                     # mean squared error, as a share of the range, that counts as none: 100 dB


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an inversion goes. Other settings, other results."""

    steps: int = 500
    learning_rate: float = 0.05
    batch: int = 4
    """Frames of a video in each step"""
    check_every: int = 20
    """Steps between two looks at all frames: the points of the curve"""
    pixel: float = 1.0
    perceptual: float = 1.0
    pull_w: float = 1e-3
    """Of W+ to the mean w, in its standard deviations"""
    pull_motion: float = 1e-3
    """Of z_m t to 0 and to that of the frame before"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "check_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too few; give 1 or more")
        for name in ("learning_rate", "pixel", "perceptual", "pull_w", "pull_motion"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; give 0 or more")


@dataclass
class State:
    """All that a stopped inversion goes on from."""

    ws: Tensor
    """[num_ws, W]"""
    moved: Tensor
    """[T, M], z_m t of each frame; zeros, and never changed, for a picture"""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """Adam's, as <parameter>.<moment>"""
    best_ws: Tensor | None = None
    best_moved: Tensor | None = None
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    """step, psnr (dB, over all frames, now), best (so far)"""
    seconds: float = 0.0

    def save(self, path: Path, key: str) -> None:
        """One safetensors file, whole or not at all."""
        from safetensors.torch import save

        tensors = {"ws": self.ws, "moved": self.moved, **self.moments}
        if self.best_ws is not None and self.best_moved is not None:
            tensors |= {"best_ws": self.best_ws, "best_moved": self.best_moved}
        about = {"key": key, "step": self.step, "curve": self.curve, "seconds": self.seconds}
        data = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_whole(path, save(data, {"state": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path, key: str, device: torch.device) -> State | None:
        """None where there is none. Raises ValueError for a damaged one, and for that of something else."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
            made = cls(
                tensors.pop("ws"), tensors.pop("moved"), best_ws=tensors.pop("best_ws", None),
                best_moved=tensors.pop("best_moved", None), step=int(about["step"]),
                curve=list(about["curve"]), seconds=float(about["seconds"]),
            )  # fmt: skip
        except (SafetensorError, OSError, LookupError, TypeError, ValueError):
            raise ValueError(f"{path}: a damaged state; delete it to begin again") from None
        if about.get("key") != key:
            raise ValueError(
                f"{path}: the state of an inversion of something else, or with other settings; "
                "give them again, or --restart"
            )
        made.moments = tensors
        return made


class Inversion:
    """One clip that is being inverted. Continued from a state it does what it would have done."""

    def __init__(
        self, generator: Generator, target: NDArray[np.uint8], cameras: NDArray[np.float32],
        times: NDArray[np.float32], loss: Loss, settings: Settings, state: State | None = None,
    ) -> None:  # fmt: skip
        """target [T, H, W, 3] RGB, cameras [T, 25], times [T]: all 0 for a picture."""
        self.generator, self.loss, self.settings = generator, loss, settings
        device = generator.plane_axes.device
        pictures = torch.from_numpy(target).to(device).movedim(-1, 1).float()
        self.target = pictures / 127.5 - 1
        self.cameras = torch.from_numpy(cameras).to(device)
        self.times = torch.from_numpy(times).to(device)
        self.moving = bool((self.times > 0).any())
        self.mean, self.spread = mean_w(generator, self.cameras[:1], settings.seed)
        dims = generator.config.z_m_dim
        start = self.mean.expand(generator.config.num_ws, -1).clone()
        self.state = state or State(start, torch.zeros(len(times), dims, device=device))
        self.free = {"ws": self.state.ws.requires_grad_(True)}
        if self.moving:
            self.free["moved"] = self.state.moved.requires_grad_(True)
        self.adam = torch.optim.Adam(list(self.free.values()), lr=settings.learning_rate, betas=(0.9, 0.99))
        self._take_moments()

    def run(self, tick: Callable[[], None] = lambda: None) -> State:
        """Go on to the last step; `tick` is called after each."""
        state = self.state
        if not state.curve:
            self._check()
        while state.step < self.settings.steps:
            begun = time.perf_counter()
            self._step()
            state.step += 1
            if state.step % self.settings.check_every == 0 or state.step == self.settings.steps:
                self._check()
            self._give_moments()
            state.seconds += time.perf_counter() - begun
            tick()
        return state

    def frames(self, ws: Tensor, moved: Tensor, which: Tensor) -> Tensor:
        """[n, 3, H, W] about [-1, 1] of the frames `which` [n]."""
        count = len(which)
        # z_m t is given as z_m, at time 1
        planes = self.generator.planes(
            ws.expand(1, count, -1, -1), moved[None, which], ws.new_ones(1, count), noise_mode="const"
        )
        seen = self.generator.render(
            planes, ws.expand(1, count, -1, -1), self.cameras[None, which], deterministic=True
        )
        return seen.image[0]

    def _step(self) -> None:
        settings, state = self.settings, self.state
        which = self._drawn(state.step)
        self.adam.param_groups[0]["lr"] = settings.learning_rate * _pace(state.step / settings.steps)
        self.adam.zero_grad(set_to_none=True)
        made = self.frames(state.ws, state.moved, which)
        loss = self.loss(made, self.target[which], settings.pixel, settings.perceptual)
        loss = loss + settings.pull_w * ((state.ws - self.mean) / self.spread).square().mean()
        if self.moving:
            change = state.moved[1:] - state.moved[:-1]
            pull = state.moved.square().mean() + change.square().sum() / state.moved.numel()
            loss = loss + settings.pull_motion * pull
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"the loss is not finite at step {state.step}; give a lower --rate")
        loss.backward()  # type: ignore[no-untyped-call]
        if self.moving and state.moved.grad is not None:
            state.moved.grad[self.times == 0] = 0  # Eq. 1: no motion at t = 0
        self.adam.step()

    def _drawn(self, step: int) -> Tensor:
        """Which frames a step sees: all in turn, in an order that depends on the seed and the step alone."""
        count, size = len(self.times), min(self.settings.batch, len(self.times))
        per_round = math.ceil(count / size)
        random = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step // per_round)
        order = torch.randperm(count, generator=random)
        start = (step % per_round) * size
        return order[torch.arange(start, start + size) % count].sort().values.to(self.times.device)

    @torch.no_grad()
    def _check(self) -> None:
        """One point of the curve; the best codes so far are kept."""
        state = self.state
        found = self.psnr(state.ws, state.moved)
        best = max((point["best"] for point in state.curve), default=-math.inf)
        if found > best or state.best_ws is None:
            state.best_ws, state.best_moved = state.ws.detach().clone(), state.moved.detach().clone()
        state.curve.append(
            {"step": state.step, "psnr": round(found, 4), "best": round(max(found, best), 4)}
        )

    @torch.no_grad()
    def psnr(self, ws: Tensor, moved: Tensor) -> float:
        """dB, mean over all frames, of pictures as they are written: 8 bits."""
        values = []
        for start in range(0, len(self.times), 8):
            which = torch.arange(start, min(start + 8, len(self.times)), device=self.times.device)
            made = ((self.frames(ws, moved, which).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
            error = ((made - self.target[which]) / 2).square().mean(dim=(1, 2, 3))
            values.append(-10 * error.clamp(min=PEAK).log10())
        return float(torch.cat(values).mean())

    def motion(self, moved: Tensor) -> Tensor:
        """z_m [T, M] of z_m t [T, M]; where t is 0, that of the next frame."""
        t = self.times.clamp(min=1e-6)[:, None]
        z_m = torch.where(self.times[:, None] > 0, moved / t, moved)
        for frame in range(len(z_m) - 2, -1, -1):
            if self.times[frame] == 0:
                z_m[frame] = z_m[frame + 1]
        return z_m

    def _give_moments(self) -> None:
        for name, parameter in self.free.items():
            for moment, value in self.adam.state[parameter].items():
                self.state.moments[f"{name}.{moment}"] = value

    def _take_moments(self) -> None:
        for name, parameter in self.free.items():
            own = {key.partition(".")[2]: value for key, value in self.state.moments.items()
                   if key.startswith(f"{name}.")}  # fmt: skip
            if own:
                own["step"] = own["step"].cpu()
                self.adam.state[parameter] = own


def settings_key(settings: Settings, *parts: str) -> str:
    """What a state must agree with to be continued."""
    return json.dumps([asdict(settings), *parts], sort_keys=True)


@torch.no_grad()
def mean_w(generator: Generator, camera: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mean w [W] of the mapping network under a camera [1, 25], and the standard deviation [W]."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(MEAN_OF, generator.config.z_dim, generator=random).to(camera.device)
    w = generator.map(z, camera.expand(MEAN_OF, 1, -1))[:, 0, 0]
    return w.mean(dim=0), w.std(dim=0).clamp(min=1e-6)


def _pace(done: float) -> float:
    """The learning rate's share: up in the first 5 %, down as a cosine in the last half."""
    up, down = min(done / 0.05 + 0.02, 1.0), min((1 - done) / 0.5, 1.0)
    return up * (0.5 - 0.5 * math.cos(math.pi * down))


def as_numbers(tensor: Tensor) -> Any:
    return tensor.detach().float().cpu().numpy()
