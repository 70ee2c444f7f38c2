"""Does the video discriminator see in which order the cameras are? (paper, appendix A.5, Fig. 8a and 8b)

8a: cosine similarity of D_vid's embeddings of a camera sequence and of the same one reversed. 8b: L1 distance
of its scores for generated frames with the cameras that rendered them, and with these reversed. Sequences are
those of training clips, drawn as in training; those whose cameras coincide are drawn again, since nothing is
reversed there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import svg
from pipelines.analyses import Findings, Subject
from pipelines.page import Figure, Section

BATCH = 8
FAR = 0.5
"""A cosine below is called far apart."""
TRIES = 100


def order(subject: Subject) -> Findings:
    """Raises ValueError for a checkpoint without D_vid, or whose D_vid sees no cameras."""
    import torch

    from model.discriminator import VideoDiscriminator
    from pipelines.checkpoints import D_VID, checkpoint_variant, load_generator, load_weights

    config = checkpoint_variant(subject.checkpoint).model
    if D_VID not in subject.checkpoint:
        raise ValueError(f"{subject.checkpoint.key}: has no video discriminator; analyse another checkpoint")
    if not config.discriminator.video_cameras:
        raise ValueError(f"{subject.checkpoint.key}: its video discriminator sees no cameras (Table 2d)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    d_vid = VideoDiscriminator(config)
    load_weights(d_vid, subject.checkpoint, D_VID)
    d_vid.eval().requires_grad_(False).to(device)
    generator, _ = load_generator(subject.checkpoint.store, subject.checkpoint.key)
    cameras, times = draw(subject, config)
    c = torch.from_numpy(cameras).to(device)
    t = torch.from_numpy(times).to(device)
    cosines = similarities(d_vid, c)
    distances, spread = score_distances(d_vid, generator.to(device), c, t, subject.seed)
    return _findings(cosines, distances, spread)


def draw(subject: Subject, config: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cameras [N, n, 25] of training clips and times [N, n], by the law of the training."""
    from model.times import frame_indices, index_times
    from pipelines.sampling import eligible
    from stages.shards import open_dataset

    dataset = open_dataset(subject.workflow.store())
    span, frames = config.frames_span, config.discriminator.frames
    clips = eligible(dataset, span)[0]
    if not clips:
        raise ValueError(f"the dataset has no training clip of {span} frames whose cameras could be reversed")
    random = np.random.default_rng([subject.seed, 8])
    cameras, times = [], []
    for _ in range(subject.count):
        for _ in range(TRIES):
            sample = clips[int(random.integers(len(clips)))]
            first = int(random.integers(sample.frame_count - span + 1))
            indices = frame_indices(random.random(frames), span)
            seen = dataset.cameras(sample)[first + indices]
            if (seen != seen[::-1]).any():
                break
        else:
            raise ValueError("the cameras of the training clips do not move; there is no order to reverse")
        cameras.append(seen)
        times.append(index_times(indices, span))
    return np.stack(cameras).astype(np.float32), np.stack(times)


def similarities(d_vid: Any, cameras: Any) -> NDArray[np.float64]:
    """[N]: cosine of the embeddings of camera sequences [N, n, 25] and of the reversed ones."""
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        ours, flipped = (d_vid.mapping(None, c.flatten(1)) for c in (cameras, cameras.flip(1)))
        return np.asarray(F.cosine_similarity(ours.double(), flipped.double(), dim=1).cpu().numpy())


def score_distances(
    d_vid: Any, generator: Any, cameras: Any, times: Any, seed: int
) -> tuple[NDArray[np.float64], float]:
    """[N]: |score - score with the cameras reversed| of generated frames, which are the same in both; and the
    standard deviation of the scores, by which to judge them."""
    import torch

    from model.clips import latents
    from pipelines.evaluate_samples import watched

    distances, scores = [], []
    with torch.no_grad():
        starts = range(0, len(cameras), BATCH)
        for start in watched(starts, len(starts), "order, batches"):
            c, t = cameras[start : start + BATCH], times[start : start + BATCH]
            drawn = [latents(generator.config, seed * 1_000_000 + start + i) for i in range(len(c))]
            z, z_m = (torch.cat(part).to(c.device) for part in zip(*drawn, strict=True))
            frames = generator(z, z_m, t, c, noise_mode="const", deterministic=True).image
            # Each video twice: the minibatch deviation is then zero, and no score depends on its neighbours.
            for video, when, seen in zip(frames, t, c, strict=True):
                pair = [x.expand(2, *x.shape) for x in (video, when)]
                ours = d_vid(*pair, seen.expand(2, *seen.shape))[0, 0]
                flipped = d_vid(*pair, seen.flip(0).expand(2, *seen.shape))[0, 0]
                distances.append(float((ours - flipped).abs()))
                scores.append(float(ours))
    return np.array(distances), float(np.std(scores))


def _findings(cosines: NDArray[np.float64], distances: NDArray[np.float64], spread: float) -> Findings:
    numbers = {
        "pairs": float(len(cosines)),
        "cosine_median": float(np.median(cosines)),
        "cosine_far_share": float(np.mean(cosines < FAR)),
        "score_distance_median": float(np.median(distances)),
        "score_distance_over_spread": float(np.median(distances) / spread) if spread > 0 else 0.0,
    }
    far, moved = numbers["cosine_far_share"], numbers["score_distance_median"]
    says = (
        f"Of {len(cosines):,} camera sequences {far:.0%} have an embedding far from that of the reversed one "
        f"(cosine below {FAR:g}); with reversed cameras the score of generated frames moves by {moved:.3g} "
        f"in the median, the scores' own deviation being {spread:.3g}."
    )
    middle = numbers["cosine_median"]
    a = svg.histogram(
        cosines, low=-1, high=1, what="sequences", name="cosine similarity",
        marks=[(middle, f"median {middle:.2f}", "median")], label="similarity of reversed camera sequences",
    )  # fmt: skip
    high = max(float(np.quantile(distances, 0.99)), 1e-6)
    middle = numbers["score_distance_median"]
    b = svg.histogram(
        distances, low=0, high=high, what="videos", name="L1 distance of scores",
        marks=[(middle, f"median {middle:.2g}", "median")], label="score distance under reversed cameras",
    )  # fmt: skip
    figures = [
        Figure("Fig. 8a: embeddings", a, "at 1 the reversed cameras are the same to D_vid; less is better"),
        Figure("Fig. 8b: scores", b, f"at 0 the order does not count; the scores deviate by {spread:.3g}"),
    ]
    return Findings("order of the cameras", numbers, says, [Section(title="Figure 8", figures=figures)])
