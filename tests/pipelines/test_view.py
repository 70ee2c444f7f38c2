"""The viewer, from its parts to the page in a browser."""

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
viser = pytest.importorskip("viser")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("av")

import chromium  # noqa: E402

from model import camera, clips  # noqa: E402
from model.config import tiny  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.api import Model  # noqa: E402
from pipelines.inspect_file import inspect_file  # noqa: E402
from pipelines.models import OpenModel, open_model  # noqa: E402
from pipelines.packed import PORTRAITS  # noqa: E402
from pipelines.trajectories import view as view_from  # noqa: E402
from pipelines.view import free_port, loopback, served  # noqa: E402
from pipelines.view_camera import PITCH_DEG, YAW_DEG, angles, seen_from  # noqa: E402
from pipelines.view_loop import Loop, Wanted  # noqa: E402
from pipelines.view_motion import find_directions, motion_layers, moved  # noqa: E402
from pipelines.view_page import letterboxed  # noqa: E402
from pipelines.view_renderer import FULL, HALF, RAW, Portrait, Renderer, Shot, StaleError  # noqa: E402

SIZE = (900, 420)
# The library's, that there is no GPU here: it would cover the face.
NO_NOTICES = "document.querySelectorAll('[role=alert]').forEach(notice => notice.style.display = 'none'), 0"
FRONT = tuple(camera.canonical_camera().encode().tolist())


def turned(yaw_deg, pitch_deg=0.0):
    return tuple(view_from(camera, yaw_deg, pitch_deg).tolist())


@pytest.fixture(scope="module")
def model() -> Model:
    """With surfaces and large motion, as a trained one has."""
    torch.manual_seed(0)
    generator = Generator(tiny().model).eval().requires_grad_(False)
    generator.decoder.net[2].weight[0] *= 20      # density: raw values of a random one stay near 0
    for layer in motion_layers(generator):
        layer.motion_mlp[1].weight *= 10
    return Model(OpenModel("random", generator, clips, camera))


@pytest.fixture
def renderer(model) -> Renderer:
    return Renderer(model)


# --- the camera --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (25, 0), (-40, 20), (10, -30)])
def test_the_page_is_seen_from_where_it_was_turned_to(yaw, pitch):
    y, p = np.deg2rad([yaw, pitch])
    place = 2.7 * np.array([np.cos(p) * np.sin(y), np.sin(p), np.cos(p) * np.cos(y)])
    seen = camera.Camera.decode(seen_from(camera, place, (0, 0, 0)))
    np.testing.assert_allclose(seen.position, place, atol=1e-6)
    np.testing.assert_allclose(angles(seen.position), (yaw, pitch), atol=1e-5)
    np.testing.assert_allclose(seen.rotation[:, 2], -place / 2.7, atol=1e-6)      # it looks at the head


def test_a_camera_behind_the_head_stays_at_the_side():
    seen = camera.Camera.decode(seen_from(camera, (0.3, 2.6, -0.5), (0, 0, 0)))
    np.testing.assert_allclose(angles(seen.position), (YAW_DEG, PITCH_DEG), atol=1e-4)
    assert np.isfinite(seen_from(camera, (0, 0, 0), (0, 0, 0))).all()
    assert np.isfinite(seen_from(camera, (float("nan"), 0, 0), (0, 0, 0))).all()


def test_coming_nearer_is_a_zoom_from_the_same_place():
    near, far = (camera.Camera.decode(seen_from(camera, (0, 0, d), (0, 0, 0))) for d in (1.35, 2.7))
    np.testing.assert_array_equal(near.position, far.position)
    assert near.intrinsics[0, 0] == pytest.approx(2 * far.intrinsics[0, 0])


# --- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "depth", "normals"])
def test_the_picture_is_the_generators_for_this_camera(kind, renderer, model):
    shot = Shot(Portrait(seed=3), 5, turned(20.0), kind)
    at, seen, front = (np.array(x, np.float32) for x in ([5 / 15], [turned(20.0)], FRONT))
    latent = model.sample(3, times=at, cameras=seen, mapping_camera=front)
    np.testing.assert_array_equal(renderer.picture(shot), model.render(latent, kind=kind)[0])


def test_planes_are_made_once_while_the_camera_moves(renderer):
    for yaw in range(-20, 21, 5):
        renderer.picture(Shot(Portrait(), 0, turned(yaw)))
    renderer.picture(Shot(Portrait(), 0, turned(3), "depth", HALF))
    assert renderer.planes_made == 1
    renderer.picture(Shot(Portrait(), 1, FRONT))
    renderer.picture(Shot(replace(Portrait(), psi=0.5), 1, FRONT))
    assert renderer.planes_made == 3


def test_quick_pictures_are_smaller_ones_of_the_same_thing(renderer):
    full, raw, half = (
        renderer.picture(Shot(Portrait(seed=1), 0, turned(15), level=level)) for level in (FULL, RAW, HALF)
    )
    assert [len(p) for p in (full, raw, half)] == [64, 32, 16]
    small = cv2.resize(raw, (16, 16), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - half).mean() < 12 < raw.std()


def test_mixing_takes_the_first_layers_of_another_seed(renderer):
    layers = renderer.config.num_ws
    a, b, none, some, all_ = (
        renderer._style(Portrait(**p))[0][0, 0]
        for p in ({"seed": 1}, {"seed": 2}, {"seed": 1, "mix_seed": 2},
                  *({"seed": 1, "mix_seed": 2, "mixed": mixed} for mixed in (3, layers)))
    )  # fmt: skip
    assert torch.equal(none, a)
    assert torch.equal(all_, b)
    assert torch.equal(some, torch.cat([b[:3], a[3:]]))


def test_the_motion_is_its_own_or_that_of_another_seed(renderer):
    own, same, other = (
        renderer.picture(Shot(Portrait(seed=4, motion_seed=m), 15, FRONT)) for m in (None, 4, 5)
    )
    np.testing.assert_array_equal(own, same)
    assert np.abs(own.astype(int) - other).max() > 10


def test_directions_are_components_of_the_layers_codes(model):
    generator = model.opened.generator
    found = find_directions(generator, codes=400)
    random = torch.Generator().manual_seed(0)
    motion = torch.randn(400, 64, generator=random) * torch.linspace(0, 1, 400)[:, None]
    for layer, components, explained in zip(
        motion_layers(generator), found.components, found.explained, strict=True
    ):
        codes = layer.code(motion).detach().double().numpy()
        sizes, axes = np.linalg.eigh(np.cov(codes.T))
        np.testing.assert_allclose(components.norm(dim=1), np.sqrt(sizes[::-1][:3]), rtol=1e-3)
        np.testing.assert_allclose(explained, sizes[::-1][:3] / sizes.sum(), rtol=1e-3)
        first = (components[0] / components[0].norm()).double().numpy()
        assert abs(axes[:, -1] @ first) == pytest.approx(1, abs=1e-3)


def test_a_direction_moves_its_layers_code_and_nothing_else_for_so_long(model):
    generator = model.opened.generator
    found, layers = find_directions(generator, codes=64), motion_layers(generator)
    code = torch.ones(1, 64)
    before = [layer.code(code) for layer in layers]
    with moved(generator, found, [(1, 2, -1.5), (1, 0, 1.0)]):
        during = [layer.code(code) for layer in layers]
    offset = found.components[1][0] - 1.5 * found.components[1][2]
    torch.testing.assert_close(during[1] - before[1], offset[None])
    assert all(torch.equal(during[k], before[k]) for k in (0, 2, 3))
    assert torch.equal(layers[1].code(code), before[1])


def test_a_latent_of_a_seed_is_shown_as_that_seed(renderer, model):
    front = np.asarray(FRONT, np.float32)
    renderer.latents["x"] = model.sample(7, cameras=np.tile(front, (16, 1)))
    for frame in (0, 9):
        shot = Shot(Portrait(seed=7), frame, turned(10))
        latent = replace(shot, portrait=Portrait(latent="x"))
        np.testing.assert_array_equal(renderer.picture(shot), renderer.picture(latent))
    renderer.latents["still"] = model.sample(7, times=np.zeros(1, np.float32))
    assert renderer.frames(Portrait(latent="still")) == 1
    assert renderer.frames(Portrait(latent="still", motion_seed=2)) == 16


def test_a_stale_picture_is_given_up_between_layers_and_made_when_wanted_again(renderer):
    shot, asked = Shot(Portrait(seed=11), 0, FRONT), []

    def stale():
        asked.append(1)
        return len(asked) > 20

    with pytest.raises(StaleError):
        renderer.picture(shot, stale)
    assert len(asked) == 21
    assert not renderer.ready(shot)
    assert renderer.picture(shot).shape == (64, 64, 3)


def test_who_else_calls_the_networks_meanwhile_is_not_given_up(renderer, model):
    others = []

    def stale():
        if not others:
            others.append(None)
            with ThreadPoolExecutor(1) as pool:
                others.append(pool.submit(Renderer, model).result())
        return True

    with pytest.raises(StaleError):
        renderer.picture(Shot(Portrait(3), 0, FRONT), stale)
    assert len(others) == 2


# --- the loop ----------------------------------------------------------------------------------------------


class Watcher:
    """A page without a browser."""

    def __init__(self, renderer):
        self.want, self.seen, self.frames = Wanted(Shot(Portrait(), 0, FRONT)), [], []
        self.loop = Loop(renderer, lambda: self.want, self._show, self._played, pytest.fail)
        self.news = threading.Condition()

    def _show(self, picture, shot):
        with self.news:
            self.seen.append((shot, len(picture), self.loop.state))
            self.news.notify_all()

    def _played(self, frame):
        self.frames.append(frame)
        self.want = replace(self.want, shot=replace(self.want.shot, frame=frame))

    def until(self, done):
        with self.news:
            assert self.news.wait_for(lambda: done(self), 30), [(s.level, s.frame) for s, *_ in self.seen]


@pytest.fixture
def watcher(renderer):
    found = Watcher(renderer)
    found.loop.start()
    found.until(lambda w: w.seen and w.seen[-1][0].level == FULL)
    yield found
    found.loop.close()
    assert not found.loop._thread.is_alive()


def test_what_moves_is_quick_and_what_stands_is_full(watcher, monkeypatch):
    monkeypatch.setattr(watcher.loop, "quick", lambda *_: HALF)
    watcher.seen.clear()
    for yaw in range(1, 21):
        watcher.want = Wanted(Shot(Portrait(), 0, turned(yaw)))
        watcher.loop.changed(moving=True)
        time.sleep(0.02)
    watcher.until(lambda w: w.seen and w.seen[-1][0].level == FULL)
    *moving, (last, size, state) = watcher.seen
    assert {(shot.level, state) for shot, _, state in moving} == {(HALF, "moving")}
    assert (last.camera, size, state) == (turned(20), 64, "settling")
    time.sleep(0.1)
    assert watcher.loop.state == "still"
    assert watcher.seen[-1][0] == last


def test_only_the_newest_is_made_after_a_slow_picture(watcher):
    renderer, seeds = watcher.loop.renderer, range(100, 130)
    watcher.loop._seconds = {FULL: 1.0}           # a machine on which nothing is smooth
    before = renderer.planes_made
    with renderer._lock:
        for seed in seeds:
            watcher.want = Wanted(Shot(Portrait(seed=seed), 0, FRONT))
            watcher.loop.changed()
            time.sleep(0.005)
    watcher.until(lambda w: w.seen[-1][0].level == FULL and w.seen[-1][0].portrait.seed == seeds[-1])
    assert renderer.planes_made - before <= 3


def test_playing_shows_frame_after_frame_back_and_forth_and_goes_on_from_other_views(watcher):
    watcher.want = replace(watcher.want, playing=True, fps=100.0)
    watcher.loop.changed()
    watcher.until(lambda w: len(w.frames) > 34)
    there = list(range(1, 16))
    assert watcher.frames[:34] == there + there[-2::-1] + [0] + there[:4]
    watcher.want = replace(watcher.want, shot=replace(watcher.want.shot, camera=turned(20)))
    watcher.loop.changed(moving=True)
    watcher.until(lambda w: w.seen[-1][0].camera == turned(20))
    watcher.want = replace(watcher.want, playing=False)
    watcher.loop.changed()
    watcher.until(lambda w: w.seen[-1][0] == replace(w.want.shot, level=FULL))


def test_the_picture_is_as_large_as_fits_and_square_on_any_page():
    picture = np.full((64, 64, 3), 200, np.uint8)
    for aspect in (1.7, 1.0, 0.46):
        page = letterboxed(picture, aspect)
        assert page.shape[1] / page.shape[0] == pytest.approx(aspect, rel=0.01)
        rows, columns = np.nonzero((page == 200).all(axis=2))
        assert np.ptp(rows) == np.ptp(columns) == min(page.shape[:2]) - 1


# --- the page in a browser ---------------------------------------------------------------------------------

LABELLED = """(() => {
  const texts = [...document.querySelectorAll('label, button, legend, span, div')]
    .filter(e => e.innerText && e.innerText.trim() === '%s' && e.getBoundingClientRect().width);
  texts.at(-1)?.scrollIntoView({block: 'center'});
  const box = texts.at(-1)?.getBoundingClientRect();
  return box && [box.x + box.width / 2, box.y + box.height / 2, box.right];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.path() is None:
        pytest.skip("no Chromium here; apt-get install --no-install-recommends chromium")
    folder = tmp_path_factory.mktemp("browser")
    with chromium.browser(folder / "profile", "--enable-unsafe-swiftshader") as opened:
        opened.save_to(folder)
        opened.downloads = folder
        yield opened


CHECKBOX = """(() => {
  const label = [...document.querySelectorAll('label')].find(e => e.innerText.trim() === '%s');
  let row = label;
  while (row && !row.querySelector('input[type=checkbox]')) row = row.parentElement;
  const box = row?.querySelector('input[type=checkbox]').getBoundingClientRect();
  return box && [box.x + box.width / 2, box.y + box.height / 2];
})()"""


SLIDER = """(() => {
  const label = [...document.querySelectorAll('label')].find(e => e.innerText.trim() === '%s');
  let row = label;
  while (row && !row.querySelector('[role=slider]')) row = row.parentElement;
  const track = row?.querySelector('[class*=Slider-track]').getBoundingClientRect();
  const thumb = row?.querySelector('[role=slider]').getBoundingClientRect();
  const middle = thumb && [thumb.x + thumb.width / 2, thumb.y + thumb.height / 2];
  return track && track.width && [middle, track.x, track.width];
})()"""


class Opened:
    """A page that a browser has opened."""

    def __init__(self, browser, server, **options):
        self.browser = browser
        browser.open(server.url, **{"width": SIZE[0], "height": SIZE[1], **options})
        self.page = until(lambda: next(iter(server.pages.values()), None))
        browser.wait(LABELLED % "save mesh", 60)
        self.still()

    def still(self):
        """When the full picture of what is wanted has been sent."""
        until(lambda: self.page.loop.state == "still" and self.page.loop._shown == self.page.shot())

    def place(self, what, text):
        """Where it is once it stands there: panels move when they open."""
        self.browser.wait(LABELLED % text)
        before = None
        while before != (before := self.browser.wait(what % text)):
            time.sleep(0.2)
        return before

    def click(self, text):
        self.browser.click(self.place(LABELLED, text)[:2])

    def tick(self, text):
        self.browser.click(self.place(CHECKBOX, text))

    def slide(self, text, part, done):
        """Again where the panel moved under the hand."""
        while not done():
            thumb, x, width = self.place(SLIDER, text)
            self.browser.drag(thumb, (x + part * width, thumb[1]))
            time.sleep(0.5)

    def canvas(self):
        """The part of the page where the picture is: uint8 [side, side, 3]."""
        width = self.browser.ask("document.querySelector('canvas').getBoundingClientRect().width")
        height = self.browser.ask("innerHeight")
        side = min(width, height)
        file, before = self.browser.downloads / "shot.png", None
        while True:                                   # what opens fades in
            self.browser.ask(NO_NOTICES)
            self.browser.shot(file, (round((width - side) / 2), 0, side, side))
            shown = cv2.imread(str(file))[..., ::-1]
            if before is not None and before.shape == shown.shape and np.array_equal(before, shown):
                return shown
            before = shown
            time.sleep(0.2)

    def saved(self, what, pattern):
        self.click(f"save {what}")
        return until(lambda: next(iter(self.browser.downloads.glob(pattern)), None))


def until(done, seconds=30):
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "never"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def opened(browser, model):
    with served(model, "127.0.0.1", free_port("127.0.0.1", 0)) as server:
        yield Opened(browser, server)


def resembles(shown, picture):
    """Whether a page shows a picture, by what both are at a size; notes may cover a corner."""
    shown, picture = (
        cv2.resize(np.ascontiguousarray(p), (32, 32), interpolation=cv2.INTER_AREA).astype(float)[13:]
        for p in (shown, picture)
    )
    return np.abs(shown - picture).mean()


def test_a_drag_turns_the_camera_and_the_page_shows_what_the_generator_makes_from_there(opened):
    page, renderer = opened.page, opened.page.renderer
    front = opened.canvas()
    assert resembles(front, renderer.picture(page.shot())) < 6
    opened.browser.drag((200, 250), (100, 250))
    opened.still()
    right = angles(camera.Camera.decode(page.shot().camera).position)[0]
    opened.browser.drag((100, 250), (300, 250))
    opened.still()
    yaw, pitch = angles(camera.Camera.decode(page.shot().camera).position)
    assert right == pytest.approx(-yaw, abs=3)
    assert right > 10
    assert abs(pitch) < 1
    turned_page = opened.canvas()
    assert resembles(turned_page, renderer.picture(page.shot())) < 6 < resembles(turned_page, front)
    opened.browser.wheel((200, 250), -300)
    until(lambda: page.shot().camera[16] > camera.FOCAL * 1.05)
    opened.click("from the front")
    until(lambda: page.shot().camera == pytest.approx(FRONT, abs=1e-5))


def test_play_advances_the_time_until_it_is_stopped(opened):
    opened.tick("play")
    frames = set()
    until(lambda: frames.add(int(opened.page.frame.value)) or len(frames) > 5)
    opened.tick("play")
    opened.still()
    assert not opened.page.play.value


def test_controls_change_what_is_shown(opened):
    page = opened.page
    before = page.portrait()
    opened.slide("frame", 0.9, lambda: page.shot().frame > 11)
    opened.click("another")
    until(lambda: page.portrait().seed != before.seed)
    opened.tick("own motion")
    until(lambda: page.portrait().motion_seed == 0)
    opened.still()
    plain = page.shot()
    opened.click("Motion directions")
    opened.slide("component 1", 0.9, lambda: page.portrait().directions)
    ((layer, component, amount),) = page.portrait().directions
    assert (layer, component) == (0, 0)
    assert amount > 2
    opened.still()
    pictures = [page.renderer.picture(replace(shot, level=FULL)) for shot in (plain, page.shot())]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 3
    opened.click("all to zero")
    until(lambda: page.portrait() == plain.portrait)


def test_saved_files_open(opened, model, monkeypatch):
    import trimesh

    from pipelines import view_save
    from pipelines.meshes import mesh_of
    from stages.video import read_all

    page = opened.page
    page.seed.value, page.own_motion.value, page.frame.value = 0, True, 9
    page._to_front()
    opened.still()
    file = opened.saved("picture", "seed*.png")
    np.testing.assert_array_equal(cv2.imread(str(file))[..., ::-1], page.renderer.picture(page.shot()))
    assert inspect_file(file)[0]["credentials"] == "valid"
    video = opened.saved("video", "*.mp4")
    assert len(list(read_all(video))) == 16
    assert inspect_file(video)[0]["synthetic"]
    monkeypatch.setattr(view_save, "MESH_POINTS", 32)
    mesh = trimesh.load(opened.saved("mesh", "*.glb"), force="mesh")
    planes, ws = page.renderer.planes_and_style(page.portrait(), page.shot().frame)
    made = mesh_of(model.opened.generator, planes, ws, resolution=32)
    assert len(mesh.faces) == len(made.faces) > 0


def test_a_latent_is_loaded_and_one_of_another_model_is_refused_on_the_page(opened, model, tmp_path):
    model.sample(5, times=np.zeros(1, np.float32)).save(tmp_path / "me")
    replace(model.sample(5), model="0" * 64).save(tmp_path / "other")
    for name in ("other", "me"):
        for end in (".safetensors", ".json"):
            opened.browser.give("input[type=file]", tmp_path / f"{name}{end}")
            time.sleep(0.5)
    until(lambda: opened.page.source.value == "me")
    opened.browser.wait("document.body.innerText.includes('of another model')")
    assert opened.page.source.options == ("a seed", "me")
    opened.still()
    assert opened.page.shot().portrait.latent == opened.page._latents["me"]


def test_the_page_fits_a_phone_and_asks_nobody_else(browser, model):
    with served(model, "127.0.0.1", free_port("127.0.0.1", 0)) as server:
        phone = Opened(browser, server, width=390, height=844, phone=True)
        assert resembles(phone.canvas()[:, :120], phone.page.renderer.picture(phone.page.shot())[:, :20]) < 12
        assert browser.ask("document.documentElement.scrollWidth") <= 390
        assert {url.split("/")[2] for url in browser.requests if url.startswith("http")} == {server.url[7:]}


@pytest.mark.slow
@pytest.mark.skipif(not PORTRAITS.is_file(), reason="this checkout ships no model")
def test_the_yaw_that_the_camera_stage_measures_on_the_page_follows_the_drag(browser):
    pytest.importorskip("dlib")
    from stages.backends.dlib import DlibFaces
    from stages.metrics.pose import face_yaw, following

    with served(Model(open_model(None, "unused")), "127.0.0.1", free_port("127.0.0.1", 0)) as server:
        opened, detector = Opened(browser, server), DlibFaces()
        opened.page.seed.value = 5           # whose face the detector finds from all sides
        opened.browser.drag((200, 250), (229, 250))
        turns, measured = [], []
        for _ in range(9):
            opened.still()
            turns.append(angles(camera.Camera.decode(opened.page.shot().camera).position)[0])
            measured.append(face_yaw(np.ascontiguousarray(opened.canvas()), detector))
            opened.browser.drag((200, 250), (193, 250))
        found = following(turns, measured)
        assert found.found >= 0.5, (turns, measured)
        assert found.correlation > 0.9, (turns, measured)


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def packed(model, tmp_path) -> Path:
    import json

    from safetensors.torch import save_file

    from model.config import to_dict
    from pipelines.packed import KEY, SCHEMA

    card = json.dumps({"schema": SCHEMA, "model": to_dict(model.config)})
    save_file(model.opened.generator.state_dict(), tmp_path / "m.safetensors", {KEY: card})
    return tmp_path / "m.safetensors"


def command(*words):
    return [sys.executable, "-c", "from pipelines.cli import main; main()", "view", *map(str, words)]


def test_a_port_in_use_is_one_line(packed):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        answer = subprocess.run(command(packed, "--port", port), capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"pv3d: --port {port}: is in use; give another, or 0 for any that is free\n"


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 100])
def test_a_host_that_is_not_here_is_one_line(host):
    with pytest.raises(ValueError, match=f"--host {host}: is no address of this machine"):
        free_port(host, 0)


def test_only_loopback_is_loopback():
    assert [loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.0.4", "box")] == (
        [True] * 3 + [False] * 3
    )


def test_the_command_says_where_and_ctrl_c_ends_it(packed):
    process = subprocess.Popen(
        command(packed, "--port", 0, "--host", "0.0.0.0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        where = process.stdout.readline()
        assert where.startswith(f"{packed} at http://0.0.0.0:")
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "closed\n")
    (line,) = error.splitlines()
    assert "anybody who reaches this machine" in line
