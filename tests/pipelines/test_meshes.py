from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")

from infra.checkpoints import save  # noqa: E402
from infra.storage import FolderStorage  # noqa: E402
from model import rendering  # noqa: E402
from model.camera import orbit  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from model.generator import Generator  # noqa: E402
from model.geometry import density_grid, normals_of  # noqa: E402
from pipelines.checkpoints import EMA  # noqa: E402
from pipelines.meshes import Mesh, mesh_of, surface, write_meshes  # noqa: E402

RADIUS, STEEP = 0.3, 2e5


@pytest.fixture(scope="module")
def sphere() -> tuple[Generator, torch.Tensor, torch.Tensor]:
    """A generator, planes and ws whose raw density is STEEP (RADIUS^2 - |x|^2), through the real decoder."""
    torch.manual_seed(0)
    config = tiny().model
    config = replace(config, rendering=replace(config.rendering, samples_coarse=64, samples_fine=64))
    generator = Generator(config).eval().requires_grad_(False)
    side = config.plane_resolution
    at = (torch.arange(side) + 0.5) / side - 0.5
    height, width = torch.meshgrid(at, at, indexing="ij")
    planes = torch.zeros(1, 1, 3, config.plane_features, side, side)
    planes[0, 0, 0, 0] = 3 * (0.5 - width**2 - height**2)  # "xy"
    planes[0, 0, 1, 0] = 3 * (0.25 - height**2)  # "xz": the mean of all is 0.75 - |x|^2, outside 0
    first, last = generator.decoder.net[0], generator.decoder.net[2]
    for layer in (first, last):
        layer.weight.zero_()
        layer.bias.zero_()
    first.weight[0, 0], first.bias[0] = 10 * config.plane_features**0.5, 10.0  # there softplus is straight
    last.weight[0, 0] = STEEP / 10 * config.decoder_hidden**0.5
    last.bias[0] = -STEEP * (1 + 0.75 - RADIUS**2)
    return generator, planes, torch.randn(1, 1, config.num_ws, config.w_dim)


@pytest.fixture(scope="module")
def mesh(sphere: tuple) -> Mesh:
    return mesh_of(*sphere, resolution=48)


def test_the_mesh_of_a_sphere_has_its_radius_and_points_outwards(mesh: Mesh) -> None:
    distance = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(distance - RADIUS).max() < 1e-3
    outwards = mesh.vertices / distance[:, None]
    assert (mesh.normals * outwards).sum(axis=1).min() > 0.99
    corners = mesh.vertices[mesh.faces]
    wound = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((wound * corners.mean(axis=1)).sum(axis=1) > 0).all()


def test_its_colours_are_those_of_the_raw_picture(sphere: tuple, mesh: Mesh) -> None:
    generator, planes, ws = sphere
    seen = generator.render(planes, ws, torch.from_numpy(orbit().encode())[None, None], deterministic=True)
    middle = seen.image_raw[0, 0, :, 16, 16].clamp(-1, 1) * 127.5 + 127.5
    assert np.abs(mesh.colours.astype(int) - middle.numpy()).max() <= 2  # one colour everywhere


def test_rendered_depth_is_where_the_rays_meet_the_mesh(sphere: tuple, mesh: Mesh) -> None:
    generator, planes, ws = sphere
    camera = torch.from_numpy(orbit(20.0, 10.0).encode())[None]
    seen = generator.render(planes, ws, camera[None], rendering_resolution=12, deterministic=True)
    origins, directions = rendering.rays(camera, 12)
    depth, opacity = (x[0, 0].flatten().numpy() for x in (seen.depth, seen.weight_total))
    met = first_hits(mesh, origins[0].numpy(), directions[0].numpy())
    hit = np.isfinite(met)
    assert 40 < hit.sum() < 144
    assert ((opacity > 0.5) == hit).mean() > 0.97
    both = hit & (opacity > 0.99)
    assert np.abs(depth - met)[both].max() < 0.02


def first_hits(mesh: Mesh, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """[Q] distances along the rays, infinite for none (Moeller and Trumbore)."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(float) for i in range(3))
    found = np.full(len(directions), np.inf)
    for index, ray in enumerate(directions.astype(float)):
        normal = np.cross(ray, c - a)
        scale = (normal * (b - a)).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = ((origin - a) * normal).sum(1) / scale
            q = np.cross(origin - a, b - a)
            v = (q @ ray) / scale
            t = (q * (c - a)).sum(1) / scale
        ok = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
        found[index] = t[ok].min(initial=np.inf)
    return found


def test_rendered_normals_are_those_of_the_sphere(sphere: tuple) -> None:
    generator, planes, ws = sphere
    camera = torch.from_numpy(orbit(25.0).encode())[None]
    seen = generator.render(planes, ws, camera[None], deterministic=True, return_xyz=True)
    normals = normals_of(seen.xyz[0], camera)[0, 12:20, 12:20].numpy()
    rotation = camera[0, :16].view(4, 4)[:3, :3].numpy()
    true = seen.xyz[0, 0, 12:20, 12:20].numpy() / RADIUS @ rotation * (1, -1, -1)
    assert (normals * true).sum(-1).min() > 0.9
    assert normals[..., 2].min() > 0  # towards the camera


def test_what_lies_before_the_rays_is_no_part_of_the_mesh(sphere: tuple) -> None:
    generator, planes, ws = sphere
    rays_begin = 2.7 - tiny().model.rendering.ray_start
    level = STEEP * (RADIUS**2 - 0.24)  # of a sphere that is larger than that
    whole, seen = (mesh_of(generator, planes, ws, level=level, resolution=24, box=box) for box in (1.0, None))
    assert np.abs(whole.vertices).max() > 0.48
    assert np.abs(seen.vertices).max() == pytest.approx(rays_begin, abs=1e-5)


def test_chunks_change_nothing(sphere: tuple) -> None:
    generator, planes, _ = sphere
    whole, parts = (
        density_grid(generator, planes, box=1.0, resolution=9, chunk=chunk) for chunk in (1000, 100)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=0.1)
    assert whole[4, 4, 4] == pytest.approx(STEEP * RADIUS**2, rel=0.01)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_files_open_with_colours_and_normals(mesh: Mesh, suffix: str, tmp_path: Path) -> None:
    file = mesh.save(tmp_path / f"head{suffix}")
    loaded = trimesh.load(file, process=False)
    read = next(iter(loaded.geometry.values())) if suffix == ".glb" else loaded
    np.testing.assert_allclose(read.vertices, mesh.vertices, atol=1e-4)
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_array_equal(read.visual.vertex_colors[:, :3], mesh.colours)
    np.testing.assert_allclose(read.vertex_normals, mesh.normals, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_axes_are_those_of_the_world() -> None:
    x, y, z = np.meshgrid(*[np.linspace(-0.5, 0.5, 21)] * 3, indexing="ij")
    ball = (0.1 - np.sqrt((x - 0.3) ** 2 + (y - 0.1) ** 2 + (z + 0.2) ** 2)).astype(np.float32)
    vertices, _, _ = surface(ball, 1.0, 0.0)
    np.testing.assert_allclose(vertices.mean(axis=0), (0.3, 0.1, -0.2), atol=0.01)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("store")
    state = Generator(tiny().model).state_dict()
    save(FolderStorage(root), "train/checkpoints", 24, {EMA: state}, {"variant": to_dict(tiny())}, keep=1)
    return root / "train" / "checkpoints" / "00000024"


def test_a_clip_is_a_sequence_of_meshes(checkpoint: Path, tmp_path: Path) -> None:
    options = {"tracking": "unused", "level": 0.0, "resolution": 16}
    files = write_meshes(str(checkpoint), tmp_path / "out" / "head.ply", frames=2, **options)
    assert [file.name for file in files] == ["head-0000.ply", "head-0001.ply"]
    first = write_meshes(str(checkpoint), tmp_path / "one.ply", time=0.0, **options)[0]
    assert first.read_bytes() == files[0].read_bytes()
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("head.ply", {"level": 1e6}, r"--level 1e\+06: no surface, the density reaches from"),
        ("head.ply", {"level": float("nan")}, "--level nan: must be a finite number"),
        ("head.ply", {"box": -1.0}, "--box -1: give a side"),
        ("head.ply", {"box": 1e300}, r"--box 1e\+300: give a side"),
        ("head.ply", {"resolution": 10**6}, "--resolution 1000000: give 8 to 768"),
        ("head.ply", {"time": 2.0}, "--time 2: give a time from 0 to 1"),
        ("head.stl", {}, "head.stl: no kind of mesh; end it in .ply, .obj, .glb"),
    ],
)
def test_what_gives_no_mesh_is_one_line_and_leaves_no_file(
    name: str, options: dict, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    given = {"resolution": 16, "level": 0.0, **options}
    with pytest.raises(ValueError, match=message):
        write_meshes(str(checkpoint), tmp_path / name, tracking="unused", **given)
    assert list(tmp_path.iterdir()) == []
