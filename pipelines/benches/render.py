"""`pv3d bench render`: what a moving camera costs of a picture, and how soon the viewer shows the first.

Whole pictures, mapping and backbone, and pictures of a moving camera (planes made once, through the viewer's
renderer) take turns, so that whatever disturbs one disturbs all. The bound of a moving camera is a whole
picture without mapping and backbone. The first picture is timed from a page's arrival: over a WebSocket, as
a browser would come, from the connection to the first picture in hand; the network is already loaded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from model import camera, clips
from model.config import variant as named_variant
from model.generator import Generator
from pipelines.api import Model
from pipelines.models import OpenModel
from pipelines.view_renderer import Portrait, Renderer, Shot

FEWEST, MOST = 5, 200            # rounds
SWING_DEG = 30.0
WAIT_S = 60.0


def run(
    variant: str = "tiny", seconds: float = 20.0, progress: Callable[[str], None] = print
) -> dict[str, Any]:
    """`variant`: of `model.config`, with random weights: they change no time. `seconds`: of measuring."""
    torch.manual_seed(0)
    generator = Generator(named_variant(variant).model).eval().requires_grad_(False)
    generator.to("cuda" if torch.cuda.is_available() else "cpu")
    model = Model(OpenModel(variant, generator, clips, camera))
    first = first_picture(model)
    progress(f"first picture after {first:.2f} s")
    full, styles, moving = _alternately(model, seconds)
    bound = full - styles
    return {
        "figures": {
            "first_picture_s": first,
            "moving_camera_over_bound": bound / moving,
            "moving_camera_fps": 1 / moving,
            "full_fps": 1 / full,
            "full_ms": 1e3 * full,
            "mapping_and_backbone_ms": 1e3 * styles,
            "moving_camera_ms": 1e3 * moving,
        }
    }


def _alternately(model: Model, seconds: float) -> tuple[float, float, float]:
    """Median seconds of a whole picture, of mapping and backbone, and of a picture of a moving camera."""
    generator, renderer = model.opened.generator, Renderer(model)
    device = generator.plane_axes.device
    z, z_m = (latent.to(device) for latent in clips.latents(generator.config, 0))
    times = torch.zeros(1, 1, device=device)
    front = torch.from_numpy(camera.canonical_camera().encode())[None, None].to(device)

    def styles() -> object:
        ws = generator.map(z, front)
        motion = z_m if generator.config.motion.code == "z_m" else z
        return generator.planes(ws, motion, times, noise_mode="const")

    def full(at: torch.Tensor) -> object:
        frames = generator(z, z_m, times, at, mapping_cameras=front, noise_mode="const", deterministic=True)
        return clips.to_uint8(frames.image)

    took: tuple[list[float], list[float], list[float]] = ([], [], [])
    end = time.monotonic() + seconds
    with torch.no_grad():
        while len(took[0]) < FEWEST + 1 or (time.monotonic() < end and len(took[0]) < MOST):
            angle = SWING_DEG * np.sin(len(took[0]))
            seen = camera.orbit(float(angle)).encode()
            at = torch.from_numpy(seen)[None, None].to(device)
            shot = Shot(Portrait(), 0, tuple(seen.tolist()))
            calls = (lambda at=at: full(at), styles, lambda shot=shot: renderer.picture(shot))
            for kept, call in zip(took, calls, strict=True):
                kept.append(_timed(call))
    assert renderer.planes_made == 1
    return tuple(statistics.median(kept[1:]) for kept in took)  # type: ignore[return-value]


def _timed(call: Callable[[], object]) -> float:
    """The three are only comparable when what runs on a GPU is waited for."""
    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def first_picture(model: Model) -> float:
    """Seconds from a page's arrival to its first picture."""
    from pipelines.view import free_port, served

    host = "127.0.0.1"
    with served(model, host, free_port(host, 0)) as server:
        begun = time.perf_counter()
        _wait_for_picture(server.url.replace("http", "ws"))
        return time.perf_counter() - begun


def _wait_for_picture(address: str) -> None:
    """Come as a browser does, say where the camera is, and read until a background picture comes.

    A message of viser's: sizes of its MessagePack, plain and compressed, 8 bytes each; that; arrays.
    """
    import msgspec
    import viser
    import zstandard
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    hello = {
        "type": "ViewerCameraMessage", "wxyz": (1.0, 0.0, 0.0, 0.0), "position": (0.0, 0.0, camera.RADIUS),
        "fov": 0.8, "near": 0.01, "far": 100.0, "image_height": 700, "image_width": 900,
        "look_at": (0.0, 0.0, 0.0), "up_direction": (0.0, 1.0, 0.0),
    }  # fmt: skip
    protocol = Subprotocol(f"viser-v{viser.__version__}")
    with connect(address, subprotocols=[protocol], max_size=None, compression=None) as page:
        page.send(msgspec.msgpack.encode(hello))
        while True:
            data = page.recv(timeout=WAIT_S)
            assert isinstance(data, bytes)
            size = int.from_bytes(data[8:16], "little")
            if _pictures(msgspec.msgpack.decode(zstandard.decompress(data[16 : 16 + size]))):
                return


def _pictures(value: Any) -> bool:
    """Whether messages hold a background that is a picture: each page begins with none."""
    if isinstance(value, dict):
        if value.get("type") == "BackgroundImageMessage":
            return value.get("rgb_data") is not None
        value = list(value.values())
    return isinstance(value, list) and any(map(_pictures, value))
