"""`pv3d bench closed_loop`: whether what a training has learned is what the data stages measure.

Of the last training in a store (or of one `checkpoint`, a key of the store) and of its untrained start:

`faces_found`        share of generated frames in which the face backend finds a face that `FollowFace` would
                     believe; `videos` videos, each from seven sides, -30 to 30 degrees
`yaw_correlation`    of the yaw that the camera stage measures in these frames with the commanded one; with
`yaw_slope`, `yaw_error_deg`
`frechet_<network>`  Frechet distance of the embeddings of the identity network (dlib's face ResNet: 128
                     numbers) between `frames` generated and as many real frames; a frame is aligned by its
                     camera. It is no FVD and compares with nothing but itself
`id_<network>`, `chamfer`    as `pv3d evaluate` has them; an untrained generator has perfect ones

`..._start` is the same of the weights before the first update, `..._real` of real frames: faces found, yaw
against the cameras of the shards, and the distance between two draws of `frames` frames, which is the floor.
With `--curve FILE.svg` all checkpoints that the training has kept are measured, and drawn there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra import checkpoints
from infra.storage import Storage, open_storage
from stages import backends
from stages.metrics import frechet
from stages.metrics.pose import Following, face_yaw, following

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint
    from pipelines.models import OpenModel
    from stages.dataset import Dataset

Pictures = NDArray[np.uint8]     # [N, H, W, 3] RGB
Array = NDArray[Any]

YAWS = (-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0)
SEED = 7_000_000                 # generated videos are of the seeds from here on
DRAW = 9                         # seed of the real frames' draw
CURVES = {
    "faces_found": "frames with a face", "yaw_correlation": "yaw, measured with commanded",
    "frechet": "Frechet distance",
}  # fmt: skip


def run(
    store: str = "runs/demo", checkpoint: str = "", videos: int = 32, frames: int = 256, curve: str = "",
    face_backend: str = "stages.backends.dlib:DlibFaces",
    identity_backend: str = "stages.backends.dlib:DlibIdentity",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures of the module's text."""
    if videos < 2 or frames < 2:
        raise ValueError("bench closed_loop: --videos and --frames are 2 or more")
    if curve and not Path(curve).absolute().parent.is_dir():
        raise ValueError(f"bench closed_loop: --curve {curve}: no such folder")
    from pipelines.checkpoints import find_checkpoint, newest_checkpoint
    from pipelines.models import of_checkpoint
    from stages.dataset import open_dataset

    kept = open_storage(store)
    found = find_checkpoint(kept, checkpoint) if checkpoint else newest_checkpoint(kept)
    detector = backends.load(face_backend, needs=backends.FACE)
    network = backends.load(identity_backend, needs=backends.IDENTITY)
    real = real_frames(open_dataset(found.store, found.card["dataset"]), found, frames)
    other = real_frames(open_dataset(found.store, found.card["dataset"]), found, frames, first=frames)
    measure = Measure(detector, network, real, videos)
    figures = measure.of_real(other)
    progress(told("real", figures))
    start = measure.of_model(untrained(found))
    progress(told("start", start))
    trained = of_checkpoint(found.store, found.key)
    last = measure.of_model(trained)
    progress(told(f"after {found.step} updates", last))
    if curve:
        earlier = {step: measure.of_model(model) for step, model in _earlier(found, progress)}
        rows = {0: start, **earlier, found.step: last}
        Path(curve).write_text(drawn(rows, figures), encoding="utf-8")
    for model, into in ((untrained(found), start), (trained, last)):
        into.update(multi_view(model, network, max(videos // 2, 2)))
    named = {"real": figures, "start": start, "": last}
    return {"figures": {
        _name(key, network.name, side): value
        for side, values in named.items() for key, value in values.items() if np.isfinite(value)
    }}  # fmt: skip


def _name(key: str, network: str, side: str) -> str:
    key = f"frechet_{network}" if key == "frechet" else key
    return f"{key}_{side}" if side else key


def told(what: str, figures: dict[str, float]) -> str:
    return f"{what}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items())


@dataclass
class Measure:
    """Measures models, and real frames, in the same way."""

    detector: backends.FaceBackend
    network: backends.IdentityBackend
    real: tuple[Pictures, Array]
    """Frames and cameras [N, 25]."""
    videos: int

    def __post_init__(self) -> None:
        self._real = frechet.statistics(self._embedded(*self.real))

    def of_real(self, other: tuple[Pictures, Array]) -> dict[str, float]:
        """`other`: another draw of as many frames."""
        from stages.cameras import euler_degrees

        pictures, cameras = self.real
        return self._figures(euler_degrees(cameras)[0], pictures, other)

    def of_model(self, model: OpenModel) -> dict[str, float]:
        yaws = np.tile(YAWS, self.videos)
        cameras = np.stack([commanded(model, yaw) for yaw in YAWS])
        seen = [turned(model, SEED + video, cameras) for video in range(self.videos)]
        return self._figures(yaws, np.concatenate(seen), generated(model, self.real[1]))

    def _figures(self, yaws: Array, turned: Pictures, like_real: tuple[Pictures, Array]) -> dict[str, float]:
        seen: Following = following(yaws, [face_yaw(picture, self.detector) for picture in turned])
        distance = frechet.frechet_distance(*self._real, *frechet.statistics(self._embedded(*like_real)))
        return {
            "faces_found": seen.found, "yaw_correlation": seen.correlation, "yaw_slope": seen.slope,
            "yaw_error_deg": seen.error_deg, "frechet": distance,
        }  # fmt: skip

    def _embedded(self, pictures: Pictures, cameras: Array) -> Array:
        """[N, D] of whole frames, aligned by where their cameras see an average face."""
        from stages.metrics.identity import frame_landmarks

        pairs = zip(pictures, cameras, strict=True)
        return np.stack([self.network.embed(p, frame_landmarks(c, len(p))) for p, c in pairs])


def commanded(model: OpenModel, yaw: float) -> Array:
    """A camera [25] that looks at the origin, as those of the data do, level with it."""
    found: Array = model.cameras.orbit(yaw, target=(0.0, 0.0, 0.0), vertical_offset=0.0).encode()
    return found


def turned(model: OpenModel, seed: int, cameras: Array) -> Pictures:
    """One moment of a video, seen by all `cameras`; its style is that of the frontal camera."""
    span = model.generator.config.frames_span
    time = np.random.default_rng(seed).integers(span) / (span - 1)
    times = np.full(len(cameras), time, np.float32)
    front = model.cameras.canonical_camera().encode()
    parts = model.clips.render_clip(model.generator, seed, cameras, times, mapping_camera=front)
    return np.concatenate([model.clips.to_uint8(part.image[0]) for part in parts])


def generated(model: OpenModel, cameras: Array) -> tuple[Pictures, Array]:
    """One frame of a video of its own for each of `cameras`: the law of the real ones."""
    seeds = range(SEED, SEED + len(cameras))
    return np.concatenate([turned(model, s, c[None]) for s, c in zip(seeds, cameras, strict=True)]), cameras


def real_frames(dataset: Dataset, found: Checkpoint, count: int, first: int = 0) -> tuple[Pictures, Array]:
    """Frames `first` to `first` + `count` of a draw as the training makes them, with their cameras."""
    from model.camera import hflip
    from pipelines.checkpoints import checkpoint_variant
    from pipelines.sampling import Sampler, check_dataset

    variant = checkpoint_variant(found)
    clips = check_dataset(dataset, variant)
    sampler = Sampler(clips, replace(variant, recipe=replace(variant.recipe, batch=1)), DRAW)
    pictures = np.empty((count, dataset.size, dataset.size, 3), np.uint8)
    cameras = np.empty((count, 25), np.float32)
    for index in range(count):
        draw = sampler.real(first + index, 0)
        frame = [int(draw.frames[0])]
        dataset.read_frames(draw.sample, frame, pictures[index : index + 1], mirrored=draw.flip)
        camera = dataset.cameras(draw.sample)[frame[0]]
        cameras[index] = hflip(camera) if draw.flip else camera
    return pictures, cameras


def untrained(found: Checkpoint) -> OpenModel:
    """What the training began with; of one that began with other weights, the fresh ones of its seed."""
    import torch

    from model import camera, clips
    from model.generator import Generator
    from pipelines.checkpoints import checkpoint_variant
    from pipelines.models import OpenModel

    torch.manual_seed(int(found.card.get("settings", {}).get("seed", 0)))
    generator = Generator(checkpoint_variant(found).model).eval().requires_grad_(False)
    return OpenModel("start", generator, clips, camera)


def _earlier(found: Checkpoint, progress: Callable[[str], None]) -> Iterator[tuple[int, OpenModel]]:
    """The other checkpoints of a training that are kept, oldest first."""
    from pipelines.models import of_checkpoint

    store: Storage = found.store
    for other in reversed(list(checkpoints.checkpoints(store, found.key.rpartition("/")[0]))):
        if other.step < found.step:
            progress(f"curve: {other.step} updates")
            yield other.step, of_checkpoint(store, other.key)


def multi_view(model: OpenModel, network: backends.IdentityBackend, videos: int) -> dict[str, float]:
    """ID and Chamfer distance as `pv3d evaluate` defines them, of the first videos of its seed 0."""
    from pipelines import evaluate_samples
    from stages.metrics.chamfer import paper_pairs
    from stages.metrics.identity import video_similarity

    rendering = model.generator.config.rendering
    near, far = rendering.ray_start, rendering.ray_end
    length = far - near if near is not None and far is not None else rendering.box_warp
    same, apart = [], []
    for number in range(videos):
        view = evaluate_samples.multi_view(model, 0, number)
        same.append(video_similarity(view, network))
        apart.append(paper_pairs(view, length / (rendering.samples_coarse - 1)))
    found = np.concatenate(apart)
    chamfer = float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")
    return {f"id_{network.name}": float(np.mean(same)), "chamfer": chamfer}


def drawn(rows: dict[int, dict[str, float]], real: dict[str, float]) -> str:
    """An SVG of the figures over the updates, side by side, each with what real frames have."""
    from pipelines import svg

    parts = []
    for place, (key, name) in enumerate(CURVES.items()):
        points = [(float(step), figures[key]) for step, figures in sorted(rows.items())]
        plot = svg.line(points, name=f"{name} (real frames: {real[key]:.3g})", unit="", label=name)
        parts.append(f'<g transform="translate({place * svg.WIDTH},0)">{plot}</g>')
    width = svg.WIDTH * len(parts)
    style = (
        "text{font:10px sans-serif;fill:#666}.axis{stroke:#888;stroke-width:.8}"
        ".grid{stroke:#ddd;stroke-width:.8}"
        ".curve{fill:none;stroke:#2563eb;stroke-width:1.6}.dot{fill:#2563eb}"
    )
    size = f'width="{width}" height="{svg.HEIGHT}" viewBox="0 0 {width} {svg.HEIGHT}"'
    sized = "".join(parts).replace("<svg ", f'<svg width="{svg.WIDTH}" height="{svg.HEIGHT}" ')
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{sized}</svg>\n'
