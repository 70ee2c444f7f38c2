"""The networks of a training with their engines, on one worker: built, resumed and saved together."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from infra.checkpoints import Checkpoint
from infra.engine import Engine, average_buffers, part
from model import losses, steps
from model.config import Variant
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator
from model.losses import GeneratorInputs, Sample
from pipelines.checkpoints import D_IMG, D_VID, EMA, GENERATOR, adam, load_weights

LOGGED = {GENERATOR: "G", D_IMG: "D_img", D_VID: "D_vid"}  # how metrics call them


class Networks:
    """Generator, its average, and the discriminators that the config asks for. `start` makes the engines."""

    g: Engine
    discriminators: list[Engine]

    def __init__(self, variant: Variant, device: torch.device, *, bfloat16: bool = False) -> None:
        """Fresh weights from torch's global random state."""
        config = variant.model
        self.variant, self.device = variant, device
        self.generator = Generator(config)
        self.generator.checkpointing = variant.recipe.checkpointing
        self.d_img = ImageDiscriminator(config) if config.discriminator.image else None
        self.d_vid = VideoDiscriminator(config) if config.discriminator.video else None
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        for network in (self.generator, self.d_img, self.d_vid) if bfloat16 else ():
            if network is not None:
                network.use_bf16()

    def trained(self) -> dict[str, nn.Module]:
        """By the name of their file."""
        named = {GENERATOR: self.generator, D_IMG: self.d_img, D_VID: self.d_vid}
        return {name: network for name, network in named.items() if network is not None}

    def start(self, found: Checkpoint | None, *, videos: int, zero: int, parts: int = 1) -> None:
        """Make the engines, with the weights and moments of a checkpoint when there is one.

        `videos` per worker, which an update goes over in `parts`. All workers call it, with the same
        checkpoint. A network that the checkpoint of another training lacks keeps its fresh weights.
        """
        self.parts = parts
        for name, network in {**self.trained(), EMA: self.ema}.items():
            held = EMA if name == GENERATOR and found and GENERATOR not in found else name
            if found and held in found:
                load_weights(network, found, held)
            network.to(self.device)
        engines = {name: self._engine(name, videos, zero) for name in self.trained()}
        for name, engine in engines.items():
            if found and adam(name) in found:
                engine.load_moments(found.load(adam(name)))
        self.g = engines.pop(GENERATOR)
        self.discriminators = list(engines.values())
        self._engines = {GENERATOR: self.g, **engines}

    def _engine(self, name: str, videos: int, zero: int) -> Engine:
        settings = steps.generator_adam if name == GENERATOR else steps.discriminator_adam
        adam_settings: dict[str, Any] = settings(self.variant.recipe)
        return Engine(LOGGED[name], self.trained()[name], videos=videos, zero=zero, parts=self.parts,
                      **adam_settings)  # fmt: skip

    @torch.no_grad()
    def fakes(self, inputs: GeneratorInputs) -> Sample:
        """Generated frames for the discriminators. The only run of the generator that moves its average
        style, by the mean over all videos of all workers."""
        average = self.generator.backbone.mapping.w_avg
        before, made, moved = average.clone(), [], []
        for index in range(self.parts):
            average.copy_(before)
            mine = part(inputs, index, self.parts)
            made.append(losses.generate(self.generator, mine, update_w_avg=True))
            moved.append(average.clone())
        average.copy_(torch.stack(moved).mean(dim=0))
        average_buffers([average])
        return made[0] if self.parts == 1 else Sample(
            *(torch.stack(field, dim=1).flatten(0, 1) for field in zip(*made, strict=True))
        )  # fmt: skip

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: weights, average and Adam's moments, by file. All workers call it."""
        weights = {name: network.state_dict() for name, network in self.trained().items()}
        moments = {adam(name): engine.moments() for name, engine in self._engines.items()}
        return {**weights, EMA: self.ema.state_dict(), **moments}

    def close(self) -> None:
        """Free what the engines hold."""
        for engine in self._engines.values():
            engine.close()

    def to_device(self, inputs: GeneratorInputs) -> GeneratorInputs:
        mapping = inputs.mapping_cameras
        return replace(
            inputs,
            z=inputs.z.to(self.device),
            z_m=inputs.z_m.to(self.device),
            times=inputs.times.to(self.device),
            cameras=inputs.cameras.to(self.device),
            mapping_cameras=None if mapping is None else mapping.to(self.device),
        )
