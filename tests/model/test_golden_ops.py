"""Isolated operators against the official ones (ops.npz): the fast ones, the plain ones of reference.py, and
the parts of the networks. A case fails when one of its arrays is neither read nor compared."""

import numpy as np
import pytest
import torch

from model import camera, fast, ops, reference, rendering, steps, times, triplane
from model.config import NAMED_PLANE_AXES, ModelConfig, MotionConfig, Recipe
from model.discriminator import Conv2d, DiscriminatorBlock, DiscriminatorEpilogue
from model.motion import MotionLayer
from model.stylegan import FullyConnected, MappingNetwork, SynthesisLayer, ToRGB

KERNEL = ops.setup_filter([1, 3, 3, 1])
CASES = {}


def case(function):
    CASES[function.__name__.removeprefix("case_")] = function
    return function


class Arrays:
    """One case's arrays; notes which were read."""

    def __init__(self, arrays):
        self.arrays, self.read = arrays, set()

    def __getitem__(self, name):
        self.read.add(name)
        return self.arrays[name]

    def __contains__(self, name):
        return name in self.arrays

    def get(self, name):
        return self[name] if name in self.arrays else None

    def state(self):
        return {n.removeprefix("state/"): self[n] for n in self.arrays if n.startswith("state/")}

    def into(self, module):
        module.load_state_dict(self.state(), strict=True)
        return module.eval()


def test_golden_operator_case(golden_case, golden, agree):
    arrays = {
        name.removeprefix(golden_case + "/"): value
        for name, value in golden.arrays("ops").items()
        if name.startswith(golden_case + "/")
    }
    kind = golden_case.split("/")[0]
    assert kind in CASES, f"operator {kind} is not compared; add case_{kind}"
    a = Arrays(arrays)
    compared = set()
    with torch.no_grad():
        for name, ours, *tolerance in CASES[kind](golden.cases.get(golden_case, {}), a):
            rtol = tolerance[0] if tolerance else 1e-5
            agree(f"{golden_case}/{name}", torch.as_tensor(ours), arrays[name], rtol=rtol, atol=rtol)
            compared.add(name)
    assert compared, "nothing was compared"
    missed = set(arrays) - compared - a.read
    assert not missed, f"{sorted(missed)} of {golden_case} are neither read nor compared"


def pair(value):
    return tuple(value) if isinstance(value, list) else (value, value)


@case
def case_upfirdn2d(p, a):
    padding = p["padding"]
    padding = [padding] * 4 if isinstance(padding, int) else padding
    x, f = a["x"], a["f"]
    taps = ops.setup_filter(f.tolist()) if f.ndim == 1 else f  # a 1-D filter works along both axes
    if f.ndim == 1:
        taps = torch.outer(f, f)
    arguments = {"flip_filter": p.get("flip_filter", False), "gain": p.get("gain", 1)}
    yield (
        "y",
        reference.upfirdn2d(x, taps, up=pair(p["up"]), down=pair(p["down"]), padding=padding, **arguments),
    )
    if p["up"] == 1 and p["down"] == 1 and p["padding"] == 0 and len(p["filter"]) == 4:
        yield "y", ops.fir(x, taps, 0)
    if p["filter"] == [1, 3, 3, 1] and p["up"] == 2 and padding == [2, 1, 2, 1]:
        yield "y", ops.fir_upsample(x, taps)
    if p["filter"] == [1, 3, 3, 1] and p["down"] == 2 and padding == [1, 1, 1, 1]:
        yield "y", ops.fir_downsample(x, taps)
    if isinstance(p["filter"], list):
        scaled = torch.tensor(p["filter"], dtype=torch.float32)
        yield "f", (scaled / scaled.sum()) if f.ndim == 1 else ops.setup_filter(p["filter"])


@case
def case_upsample2d(p, a):
    f = ops.setup_filter(p["filter"])
    yield "y", ops.fir_upsample(a["x"], f)
    yield "y", reference.fir_upsample(a["x"], f)


@case
def case_downsample2d(p, a):
    f = ops.setup_filter(p["filter"])
    yield "y", ops.fir_downsample(a["x"], f)
    yield "y", reference.fir_downsample(a["x"], f)


@case
def case_gauss_blur(p, a):
    yield "f", ops.blur_taps(p["sigma"])
    yield "y", ops.blur(a["x"], p["sigma"])


@case
def case_bias_act(p, a):
    given = {k: p[k] for k in ("alpha", "gain", "clamp") if k in p}
    assert reference.ACTIVATIONS[p["act"]][1] == pytest.approx(
        p.get("default_gain", reference.ACTIVATIONS[p["act"]][1])
    )
    yield "y", reference.bias_act(a["x"], a["b"], act=p["act"], **given)


@case
def case_conv2d_resample(p, a):
    x, w, f = a["x"], a["w"], ops.setup_filter(p["filter"])
    if "f" in a:
        yield "f", f
    arguments = {"up": p["up"], "down": p["down"], "padding": p["padding"], "flip_weight": p["flip_weight"]}
    yield "y", reference.conv2d_resample(x, w, f, **arguments)
    if p["up"] == 2 and p["k"] == 3 and not p["flip_weight"]:
        yield "y", ops.up_conv2d(x, w, f)
    if p["down"] == 2 and p["flip_weight"]:
        layer = Conv2d(w.shape[1], w.shape[0], p["k"], down=True, activate=False)
        layer.weight.copy_(w * w[0].numel() ** 0.5)  # it divides by this
        yield "y", layer(x)


@case
def case_modulated_conv2d(p, a):
    x, weight, styles, noise = a["x"], a["weight"], a["styles"], a.get("noise")
    f = KERNEL if a.get("f") is None else a["f"]
    assert (noise is not None) == p["noise"]
    arguments = {"up": p["up"], "down": p["down"], "padding": p["padding"], "flip_weight": p["flip_weight"]}
    plain = {"demodulate": p["demodulate"], "noise": noise}
    plain["resample"] = lambda y, w: reference.conv2d_resample(y, w, f, **arguments)
    yield "y", reference.modulated_conv2d(x, weight, styles, **plain)
    if p["demodulate"] and p["down"] == 1:
        bias = torch.zeros(len(weight))
        layer = {"gain": 1.0, "clamp": None, "up": p["up"] == 2, "kernel": f}
        y = fast.modulated_layer(x, weight, styles, noise, bias, **layer)
        yield "y", torch.nn.functional.leaky_relu(y, 5.0)  # undo its activation


@case
def case_fully_connected(p, a):
    outputs, inputs = a["state/weight"].shape
    given = {"activation": p["activation"], "lr_multiplier": p["lr_multiplier"], "bias_init": p["bias_init"]}
    yield "y", a.into(FullyConnected(inputs, outputs, **given))(a["in_x"])


@case
def case_synthesis_layer(p, a):
    outputs, inputs = a["state/weight"].shape[:2]
    w_dim = a["state/affine.weight"].shape[1]
    layer = SynthesisLayer(
        inputs, outputs, w_dim=w_dim, resolution=p["resolution"], up=p["up"] == 2, clamp=p.get("conv_clamp")
    )
    yield "y", a.into(layer)(a["in_x"], a["in_w"], p["noise_mode"], None, p.get("gain", 1.0))


@case
def case_torgb_layer(p, a):
    outputs, inputs = a["state/weight"].shape[:2]
    layer = ToRGB(inputs, outputs, w_dim=a["state/affine.weight"].shape[1], clamp=p["conv_clamp"])
    yield "y", a.into(layer)(a["in_x"], a["in_w"])
    yield "y", layer(a["in_x"].contiguous(memory_format=torch.channels_last), a["in_w"])


@case
def case_discriminator_block(p, a):
    from_image = p["in_channels"] == 0
    block = DiscriminatorBlock(
        p["img_channels"] if from_image else 0, p["tmp"], p["out"], clamp=p["conv_clamp"]
    )
    yield "y", a.into(block)(a["in_img"] if from_image else a["in_x"])


@case
def case_discriminator_epilogue(p, a):
    epilogue = DiscriminatorEpilogue(
        p["in_channels"], cmap_dim=p["cmap_dim"], group=p["mbstd_group_size"], clamp=p.get("conv_clamp")
    )
    yield "y", a.into(epilogue)(a["in_x"], a["in_cmap"])


@case
def case_motion_layer(p, a):
    layer = MotionLayer(
        p["channels"], z_m_dim=p["w_dim"], w_dim=p["w_dim"], resolution=p["resolution"], config=MotionConfig()
    )
    motion_time = a["in_z_motion"] * a["in_Ts"].reshape(-1, 1)
    yield "y", a.into(layer)(a["in_x"], motion_time, p["noise_mode"])


@case
def case_minibatch_std(p, a):
    yield "y", ops.minibatch_std(a["x"], p["group_size"], p["num_channels"])


@case
def case_normalize_2nd_moment(p, a):
    yield "y", ops.normalize_2nd_moment(a["x"], p["eps"])


@case
def case_mapping(p, a):
    has_z = p["z_dim"] > 0
    network = MappingNetwork(
        z_dim=p["z_dim"], c_dim=p["c_dim"], w_dim=p["w_dim"], layers=p["num_layers"],
        lr_multiplier=p["lr_multiplier"], w_avg_beta=p["w_avg_beta"] if has_z else None,
    )  # fmt: skip
    a.into(network)
    w = network(a["z"] if has_z else None, a["c"])
    if not has_z:
        yield "ws", w
        return
    yield "ws", network.broadcast(w, p["num_ws"])
    yield "ws_psi0.6", network.broadcast(w, p["num_ws"], 0.6)
    yield "ws_psi0.6_cut3", network.broadcast(w, p["num_ws"], 0.6, 3)
    network.update_w_avg(w)
    yield "w_avg_after_update", network.w_avg


@case
def case_ray_sampler(p, a):
    origins, directions = rendering.rays(a["c"], p["resolution"])
    yield "origins", origins[:, None].expand_as(directions)
    yield "directions", directions


@case
def case_plane_projection(p, a):
    # The official axes are bases of the planes; a point's coordinates are those of its inverse.
    official = torch.linalg.inv(a["axes"])[:, :, :2].transpose(1, 2)
    config = ModelConfig(img_resolution=512, plane_axes="eg3d_compat")
    ours = torch.tensor(config.plane_matrices)
    assert torch.equal(official, ours)
    yield "projected", triplane.project(a["coords"], ours)


@case
def case_plane_sampling(p, a):
    axes = torch.tensor(ModelConfig(img_resolution=512, plane_axes="eg3d_compat").plane_matrices)
    yield "features", triplane.sample_planes(a["planes"], a["coords"], axes, p["box_warp"])


@case
def case_decoder(p, a):
    rgb, sigma = a.into(triplane.Decoder(p["in_dim"], p["hidden"], p["out"]))(a["x"])
    yield "rgb", rgb
    yield "sigma", sigma


@case
def case_ray_marcher(p, a):
    density, depths = a["densities"].squeeze(-1), a["depths"].squeeze(-1)
    colours = a["colors"] if "colors" in a else torch.zeros(*depths.shape, 1)
    white = p.get("white_back", False)
    for march in (rendering.composite, reference.composite):
        seen = march(density, depths, [colours[:, :, :2], colours[:, :, 2:]], white_background=white)
        yield "depth", seen.depth[..., None]
        yield "weights", seen.weights[..., None]
        if "rgb" in a:
            yield "rgb", seen.colour * 2 - 1
            yield "weight_total", seen.weight_total[..., None]
    if "xyz" in a:
        weights = seen.weights.clone()
        weights[..., -1] += 1 - seen.weight_total
        yield "weights_background_added", weights[..., None]
        # On a straight ray this is the point at the expected depth; the case's points are arbitrary.
        yield "xyz", (rendering.point_weights(weights)[..., None] * a["points"]).sum(dim=2)


@case
def case_sample_stratified(p, a):
    depths = a["depths"]
    start, end = torch.full((*depths.shape[:2], 1), 2.25), torch.full((*depths.shape[:2], 1), 3.3)
    start, end = start * p.get("ray_start", 2.25) / 2.25, end * p.get("ray_end", 3.3) / 3.3
    jitter = a["jitter"].squeeze(-1) if "jitter" in a else None
    ours = rendering.stratified_depths(
        start, end, depths.shape[2], jitter, disparity=p.get("disparity", False)
    )
    yield "depths", ours[..., None]


@case
def case_sample_pdf(p, a):
    u = torch.linspace(0, 1, p["n"]).expand(len(a["bins"]), -1) if p["det"] else a["u"]
    yield "samples", rendering.inverse_cdf(a["bins"], a["weights"], u, p["eps"])


@case
def case_sample_importance(p, a):
    depths, weights = a["z_vals"].squeeze(-1), a["weights"].squeeze(-1)
    u = a["u"].view(*depths.shape[:2], -1)
    yield "samples", rendering.importance_depths(depths, weights, u)[..., None]


@case
def case_ray_limits_box(p, a):
    enter, leave = rendering.box_limits(a["origins"], a["directions"], p["box"])
    yield "tmin", enter
    yield "tmax", leave


@case
def case_filtered_resizing(p, a):
    yield "y", ops.resize(a["x"], p["size"])


@case
def case_look_at(p, a):
    ours = camera.orbit(p["yaw_deg"], p["pitch_deg"])
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3], pose[:3, 3] = ours.rotation, ours.position
    yield "cam2world", pose[None]


@case
def case_camera_hflip(p, a):
    assert list(camera.FLIP_NEGATES) == p["negated_indices"]
    yield "flipped", camera.hflip(a["c"].numpy())


@case
def case_schedules(p, a):
    recipe = Recipe(
        batch=p["batch_total"], videos_per_gpu=p["batch_per_gpu"], blur_sigma=p["blur_init_sigma"],
        swap_probability=p["gpc_reg_prob"], swap_fade_kvideos=p["gpc_fade_kimg"],
        resolution_initial=p["nrr_initial"], resolution_fade_kvideos=p["nrr_fade_kimg"],
        ema_rampup=p["ema_rampup"],
    )  # fmt: skip
    samples = a["num_samples"].tolist()
    yield "blur_sigma", torch.tensor([steps.blur_sigma(n, recipe) for n in samples], dtype=torch.float64)
    yield "swap_prob", torch.tensor([steps.swap_probability(n, recipe) for n in samples], dtype=torch.float64)
    yield "nrr", torch.tensor([steps.rendering_resolution(n, recipe, p["nrr_final"]) for n in samples])
    yield "ema_beta", torch.tensor([steps.ema_beta(n, recipe) for n in samples], dtype=torch.float64)


@case
def case_timesteps(p, a):
    config = ModelConfig(img_resolution=512)
    t = steps.sample_times(1_000_000, config, Recipe(), torch.Generator().manual_seed(0))
    dt = t.diff(dim=1)[:, 0]
    statistical = 3e-3  # two independent million draws
    yield "mean_t", t.mean(dim=0), statistical
    yield "std_t", t.std(dim=0), statistical
    yield "mean_dt", dt.mean(), statistical
    for name, values in (("t0", t[:, 0]), ("t1", t[:, 1]), ("dt", dt)):
        ordered = values.sort().values
        at = (a["q"] * (len(ordered) - 1)).round().long()
        theirs = a[f"quantile_{name}"]
        inner = slice(1, -1)  # the extremes of a sample are no statistic of its law
        yield f"quantile_{name}", torch.cat([theirs[:1], ordered[at][inner], theirs[-1:]]), statistical
    yield "real_pair_probability", times.index_pair_probability(config.frames_span)


def test_every_golden_plane_set_has_three_planes():
    assert {len(axes) for axes in NAMED_PLANE_AXES.values()} == {3}
