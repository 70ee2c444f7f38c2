"""Volume rendering: rays, samples along them, compositing (paper section 3.4, Eq. 6).
Shapes: N frames, R side of the image, Q = R^2 rays, S samples per ray, C features. Depth is the distance
along the unit ray, in world units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.triplane import Decoder, sample_planes

BALL_SLOPE, BALL_FLOOR, BALL_WALL = 60.0, -4.0, -0.05
"""Of `ball`: raw density per world unit, raw density far outside, and where the wall is (z, world units)."""


def rays(cameras: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """cameras [N, 25] -> origins [N, 3] and unit directions [N, Q, 3] through the pixel centres, row by
    row."""
    pose, k = cameras[:, :16].view(-1, 4, 4), cameras[:, 16:].view(-1, 3, 3)
    fx, skew, cx = k[:, 0, 0, None], k[:, 0, 1, None], k[:, 0, 2, None]
    fy, cy = k[:, 1, 1, None], k[:, 1, 2, None]
    centres = (torch.arange(resolution, device=cameras.device, dtype=cameras.dtype) + 0.5) / resolution
    v, u = (grid.reshape(1, -1) for grid in torch.meshgrid(centres, centres, indexing="ij"))
    x = (u - cx + cy * skew / fy - skew * v / fy) / fx
    y = ((v - cy) / fy).expand_as(x)
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # OpenCV: x right, y down, z forward
    directions = F.normalize(in_camera @ pose[:, :3, :3].transpose(1, 2), dim=-1)
    return pose[:, :3, 3], directions


def box_limits(origins: Tensor, directions: Tensor, side: float) -> tuple[Tensor, Tensor]:
    """Where rays [N, Q, 3] enter and leave the centred cube: [N, Q, 1] each; (-1, -2) for a miss."""
    inverse = 1 / directions
    low, high = (-side / 2 - origins) * inverse, (side / 2 - origins) * inverse
    enter = torch.minimum(low, high).amax(dim=-1, keepdim=True)
    leave = torch.maximum(low, high).amin(dim=-1, keepdim=True)
    miss = enter > leave
    return enter.masked_fill(miss, -1.0), leave.masked_fill(miss, -2.0)


def ray_limits(
    origins: Tensor, directions: Tensor, start: float | None, end: float | None, side: float
) -> tuple[Tensor, Tensor]:
    """First and last depth per ray, [N, Q, 1]: the given numbers, or the box's; a ray that misses takes the
    range of those that hit."""
    n, q, _ = directions.shape
    if start is not None and end is not None:
        return directions.new_full((n, q, 1), start), directions.new_full((n, q, 1), end)
    enter, leave = box_limits(origins[:, None], directions, side)
    hit = leave > enter
    if not bool(hit.any()):
        raise ValueError(
            f"no ray meets the box of side {side:g}; point the camera at the origin or set ray_start, ray_end"
        )
    enter = enter.clamp(min=0)
    return torch.where(hit, enter, enter[hit].min()), torch.where(hit, leave, leave[hit].max())


def stratified_depths(
    start: Tensor, end: Tensor, samples: int, jitter: Tensor | None = None, *, disparity: bool = False
) -> Tensor:
    """[N, Q, 1] limits -> [N, Q, S] increasing depths. `jitter` [N, Q, S] in [0, 1) moves each sample by up
    to one bin, outwards only: the last may pass the end."""
    steps = torch.linspace(0, 1, samples, device=start.device, dtype=start.dtype)
    if disparity:
        steps = steps + (0 if jitter is None else jitter / (samples - 1))
        return 1 / (1 / start * (1 - steps) + 1 / end * steps)
    depths = start + (end - start) * steps
    return depths if jitter is None else depths + jitter * ((end - start) / (samples - 1))


def inverse_cdf(bins: Tensor, weights: Tensor, u: Tensor, eps: float = 1e-5) -> Tensor:
    """Samples of a piecewise constant density: bins [..., K + 1], weights [..., K], u [..., F] -> [..., F].
    Intervals that hold less than `eps` of the mass collapse to their lower end (nearly: denominator 1).
    """
    pdf = weights + eps
    cdf = (pdf / pdf.sum(dim=-1, keepdim=True)).cumsum(dim=-1)
    cdf = F.pad(cdf, (1, 0))
    above = torch.searchsorted(cdf, u.contiguous(), right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=weights.shape[-1])
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    mass = cdf_above - cdf_below
    fraction = (u - cdf_below) / torch.where(mass < eps, torch.ones_like(mass), mass)
    return bins.gather(-1, below) + fraction * (bins.gather(-1, above) - bins.gather(-1, below))


@torch.no_grad()
def importance_depths(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Fine depths where the coarse weights are: depths [N, Q, S], weights [N, Q, S - 1], u [N, Q, F] -> [N,
    Q, F].
    The weights are smoothed by a max over neighbours, a mean over neighbours and + 0.01; the first and the
    last interval are left out. No gradient passes."""
    w = F.max_pool1d(weights.flatten(0, 1)[:, None], 2, stride=1, padding=1)
    w = F.avg_pool1d(w, 2, stride=1)[:, 0].view_as(weights) + 0.01
    middles = (depths[..., :-1] + depths[..., 1:]) / 2
    return inverse_cdf(middles[..., :-1], w[..., 1:-1], u)


def interval_weights(density: Tensor, depths: Tensor, scale: float = 1.0) -> Tensor:
    """Raw density [N, Q, S] at sorted depths [N, Q, S] -> weights [N, Q, S - 1] of the intervals between
    them.
    Eq. 6, discretised: sigma of an interval is softplus(mean of its ends - 1); there is no infinite last
    interval."""
    sigma = scale * F.softplus((density[..., :-1] + density[..., 1:]) / 2 - 1)
    alpha = -torch.expm1(-sigma * (depths[..., 1:] - depths[..., :-1]))
    transmitted = torch.cumprod(1 - alpha + 1e-10, dim=-1)
    return alpha * F.pad(transmitted[..., :-1], (1, 0), value=1.0)


def point_weights(weights: Tensor) -> Tensor:
    """Interval weights [..., S - 1] -> weights of the samples [..., S]. Interval colours are means of the two
    ends, so sum_i w_i (c_i + c_{i+1}) / 2 = sum_j v_j c_j with v_j = (w_j + w_{j-1}) / 2."""
    return (F.pad(weights, (0, 1)) + F.pad(weights, (1, 0))) / 2


@dataclass
class Composite:
    """What the rays of N frames see."""

    colour: Tensor
    """[N, Q, C], sum of w c (not yet x 2 - 1)"""
    depth: Tensor
    """[N, Q]"""
    weight_total: Tensor
    """[N, Q], opacity"""
    weights: Tensor
    """[N, Q, S - 1] of the sorted intervals"""
    depths: Tensor
    """[N, Q, S] sorted"""
    density: Tensor
    """[N, Q, S] raw, sorted"""


def composite(
    density: Tensor, depths: Tensor, colours: list[Tensor], *, white_background: bool = False,
    density_scale: float = 1.0,
) -> Composite:
    """density, depths [N, Q, S] in any order; colours a list of [N, Q, S_k, C] whose S_k add up to S in that
    order.
    Only densities are sorted; the sample weights go back to the unsorted order, so colours are never moved.
    """
    sorted_depths, order = depths.sort(dim=-1)
    sorted_density = density.gather(-1, order)
    weights = interval_weights(sorted_density, sorted_depths, density_scale)
    total = weights.sum(dim=-1)
    v_sorted = point_weights(weights)
    v = torch.zeros_like(v_sorted).scatter(-1, order, v_sorted)
    n, q, _ = depths.shape
    colour = depths.new_zeros(())
    for part, c in zip(v.split([c.shape[2] for c in colours], dim=-1), colours, strict=True):
        colour = colour + torch.bmm(
            part.reshape(n * q, 1, -1), c.reshape(n * q, c.shape[2], -1).to(part.dtype)
        )
    colour = colour.view(n, q, -1)
    if white_background:
        colour = colour + (1 - total)[..., None]
    # An empty ray has depth 0 / 0: it takes the last depth of its own frame (official: of the whole batch, so
    # that a frame's depth depends on its batch mates).
    depth = ((v_sorted * sorted_depths).sum(dim=-1) / total).nan_to_num(nan=float("inf"))
    first, last = sorted_depths.flatten(1).min(dim=1).values, sorted_depths.flatten(1).max(dim=1).values
    depth = torch.minimum(torch.maximum(depth, first[:, None]), last[:, None])
    return Composite(colour, depth, total, weights, sorted_depths, sorted_density)


def expected_points(weights: Tensor, depths: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """[N, Q, 3]: where the rays end on average, the missing mass put on the last interval."""
    missing = 1 - weights.sum(dim=-1, keepdim=True)
    full = torch.cat([weights[..., :-1], weights[..., -1:] + missing], dim=-1)
    expected_depth = (point_weights(full) * depths).sum(dim=-1, keepdim=True)
    return origins[:, None] + expected_depth * directions


def ball(points: Tensor, radius: float) -> Tensor:
    """[..., 3] -> [..., 1] raw density that the decoder's is added to: a ball about the origin in front of a
    wall. The decoder's few units move the surface by a tenth of the ball's size or two."""
    inside = torch.maximum(radius - points.norm(dim=-1), BALL_WALL - points[..., 2])
    density: Tensor = (BALL_SLOPE * inside[..., None]).clamp(min=BALL_FLOOR, max=-BALL_FLOOR)
    return density


def published_density(density: Tensor, points: Tensor, *, scale: float, radius: float) -> Tensor:
    """The decoder's raw density [..., 1] at points [..., 3], with the ball and in the unit in which
    softplus(x - 1) is the density per world unit."""
    if radius:
        density = density + ball(points, radius)
    if scale == 1:
        return density
    sigma: Tensor = scale * F.softplus(density - 1)
    return 1 + sigma + torch.log(-torch.expm1(-sigma))


def shade(
    planes: Tensor,
    origins: Tensor,
    directions: Tensor,
    depths: Tensor,
    *,
    axes: Tensor,
    box_warp: float,
    decoder: Decoder,
    density_ball: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Colours [N, Q, S, C] and raw densities [N, Q, S] at the samples of depth [N, Q, S]."""
    n, q, s = depths.shape
    points = (origins[:, None, None] + depths[..., None] * directions[:, :, None]).view(n, q * s, 3)
    colour, density = decoder(sample_planes(planes, points, axes, box_warp))
    if density_ball:
        density = density + ball(points, density_ball)
    return colour.view(n, q, s, -1), density.view(n, q, s)


@dataclass
class Seen:
    """What `march` makes of Q rays of N frames: the part of `Composite` that is kept, rays in dimension 1."""

    colour: Tensor
    """[N, Q, C]"""
    depth: Tensor
    """[N, Q], infinite where nothing is seen"""
    weight_total: Tensor
    """[N, Q]"""
    points: Tensor
    """[N, Q, 3], where the rays end on average; [N, Q, 0] unless asked for"""
    last: Tensor
    """[N, Q], depth of the last sample"""

    def depth_within_frame(self) -> Tensor:
        """[N, Q] finite: an empty ray takes the last depth of its own frame, as in `composite`."""
        return torch.minimum(self.depth, self.last.amax(dim=1, keepdim=True))


March = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]


def march(
    planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, u: Tensor | None, *,
    axes: Tensor, box_warp: float, decoder: Decoder, white_background: bool, density_scale: float = 1.0,
    density_ball: float = 0.0, points: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The fields of `Seen`: coarse samples at `depths` [N, Q, S], fine ones by `u` [N, Q, F] (None: none),
    and their composite. Each ray by itself."""

    def samples(at: Tensor) -> tuple[Tensor, Tensor]:
        return shade(
            planes, origins, directions, at, axes=axes, box_warp=box_warp, decoder=decoder,
            density_ball=density_ball,
        )  # fmt: skip

    colour, density = samples(depths)
    colours = [colour]
    if u is not None:
        with torch.no_grad():
            coarse = interval_weights(density, depths, density_scale)
            fine_depths = importance_depths(depths, coarse, u)
        fine_colour, fine_density = samples(fine_depths)
        colours.append(fine_colour)
        depths = torch.cat([depths, fine_depths], dim=-1)
        density = torch.cat([density, fine_density], dim=-1)
    seen = composite(
        density, depths, colours, white_background=white_background, density_scale=density_scale
    )
    where = depths[..., :0].clone()
    if points:
        where = expected_points(seen.weights, seen.depths, origins, directions)
    # What a frame's empty rays take is only known when all of its chunks are there.
    depth = seen.depth.masked_fill(seen.weight_total == 0, float("inf"))
    last = seen.depths[..., -1].clone()  # a view would keep all depths
    return seen.colour, depth, seen.weight_total, where, last


def march_in_chunks(
    function: March, rays: int, planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor,
    u: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`function` (a `march`) over at most `rays` rays of one frame at a time, each chunk computed again in
    the backward pass. Nothing is drawn in it: values and gradients are those of all rays at once."""
    frames = []
    per_frame = [x.split(1) for x in (planes, origins, directions, depths)]
    draws = [None] * len(planes) if u is None else u.split(1)
    for plane, origin, direction, depth, draw in zip(*per_frame, draws, strict=True):
        chunks = []
        for start in range(0, depth.shape[1], rays):
            part = slice(start, start + rays)
            mine = None if draw is None else draw[:, part]
            args = (plane, origin, direction[:, part], depth[:, part], mine)
            if torch.is_grad_enabled():
                chunks.append(checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False))
            else:
                chunks.append(function(*args))
        frames.append([torch.cat(x, dim=1) for x in zip(*chunks, strict=True)])
    return tuple(torch.cat(x) for x in zip(*frames, strict=True))
