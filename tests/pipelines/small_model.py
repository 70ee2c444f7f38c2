"""A `tiny` generator that renders few samples: fractions of a second per picture, random weights."""

from dataclasses import replace

import torch

from model import camera, clips
from model.config import tiny
from model.generator import Generator
from pipelines.api import Model
from pipelines.models import OpenModel


def small_model(seed: int = 0) -> Model:
    config = tiny().model
    few = replace(config.rendering, resolution=16, samples_coarse=6, samples_fine=0)
    torch.manual_seed(seed)
    generator = Generator(replace(config, rendering=few)).eval().requires_grad_(False)
    return Model(OpenModel(f"small-{seed}", generator, clips, camera))
