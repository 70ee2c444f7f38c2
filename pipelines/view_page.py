"""One page of the viewer: its controls, and the picture behind them."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import viser

from pipelines.latents import Latent, tensors_path
from pipelines.publish import MARKED, Marking
from pipelines.view_camera import seen_from
from pipelines.view_loop import Loop, Wanted
from pipelines.view_motion import COMPONENTS
from pipelines.view_renderer import FULL, Picture, Portrait, Renderer, Shot
from pipelines.view_save import image_file, mesh_file, video_file

log = logging.getLogger(__name__)

SHOWN_PX = 512                   # the picture's side on its way to the page
BACKDROP = 24                    # grey around it
KINDS = {"picture": "image", "depth": "depth", "normals": "normals"}
SEEDS = "a seed"
MOST_UPLOAD = 1 << 28

Saver = Callable[[Renderer, Shot, Path, Marking], Path]


class Page:
    """Made when a browser connects, closed when it leaves."""

    def __init__(self, client: viser.ClientHandle, renderer: Renderer, marking: Marking = MARKED) -> None:
        self.client, self.renderer, self.marking = client, renderer, marking
        self._amounts: dict[tuple[int, int], float] = {}
        self._latents: dict[str, str] = {}                   # name on the page -> of the renderer
        self._uploads = tempfile.TemporaryDirectory(prefix="pv3d-view-")
        self.loop = Loop(renderer, self.wanted, self._show, self._played, self._failed)
        with client.atomic():
            self._person_controls()
            self._time_controls()
            self._motion_controls()
            self._mix_controls()
            self._file_controls()
        self._aspect = 0.0
        client.camera.on_update(lambda _: self._camera_moved())
        self.loop.start()

    def close(self) -> None:
        self.loop.close()
        self._uploads.cleanup()

    def portrait(self) -> Portrait:
        """As the controls have it."""
        return Portrait(
            seed=int(self.seed.value), psi=float(self.psi.value), mix_seed=int(self.mix_seed.value),
            mixed=int(self.mixed.value),
            motion_seed=None if self.own_motion.value else int(self.motion_seed.value),
            directions=tuple((*place, amount) for place, amount in sorted(self._amounts.items()) if amount),
            latent=self._latents.get(self.source.value),
        )  # fmt: skip

    def shot(self) -> Shot:
        """What the page shows, or is about to show."""
        portrait, camera = self.portrait(), self.client.camera
        frame = min(int(self.frame.value), self.renderer.frames(portrait) - 1)
        cameras = self.renderer.model.opened.cameras
        seen = seen_from(cameras, list(camera.position), list(camera.look_at))
        return Shot(portrait, frame, seen, KINDS[self.kind.value])

    def wanted(self) -> Wanted:
        return Wanted(self.shot(), bool(self.play.value))

    def _show(self, picture: Picture, shot: Shot) -> None:
        """Send a picture, in the middle of a canvas of the page's shape."""
        quality = 90 if shot.level == FULL else 75
        aspect = self.client.camera.aspect if self.client.camera.image_height else 1.0
        self.client.scene.set_background_image(
            letterboxed(picture, aspect), format="jpeg", jpeg_quality=quality
        )

    def _camera_moved(self) -> None:
        """Also when the page has another shape: then the same picture is sent anew."""
        aspect = self.client.camera.aspect
        self.loop.changed(moving=True, again=aspect != self._aspect)
        self._aspect = aspect

    def _played(self, frame: int) -> None:
        _put(self.frame, frame)

    def _failed(self, line: str) -> None:
        self.client.add_notification("This cannot be shown", line, color="red")

    # --- controls ------------------------------------------------------------------------------------------

    def _person_controls(self) -> None:
        gui = self.client.gui
        self.source = gui.add_dropdown("portrait", (SEEDS,), initial_value=SEEDS, visible=False)
        self.seed = gui.add_number("seed", 0, min=0, max=2**31 - 1, step=1, hint="Who is shown")
        another = gui.add_button("another", icon=viser.Icon.ARROWS_SHUFFLE)
        another.on_click(lambda _: _put(self.seed, random.randrange(10_000)))
        self.psi = gui.add_slider("psi", 0.0, 1.2, 0.05, 1.0, hint="Below 1 the faces are more alike")
        self.kind = gui.add_dropdown("show", tuple(KINDS))
        front = gui.add_button("from the front", icon=viser.Icon.FOCUS_CENTERED)
        front.on_click(lambda _: self._to_front())
        for control in (self.seed, self.psi, self.kind):
            control.on_update(lambda _: self.loop.changed())
        self.source.on_update(lambda _: self._other_length())

    def _time_controls(self) -> None:
        gui = self.client.gui
        last = int(self.renderer.config.frames_span) - 1
        self.frame = gui.add_slider("frame", 0, last, 1, 0)
        self.play = gui.add_checkbox("play", False, hint="Back and forth")
        self.frame.on_update(self._frame_dragged)
        self.play.on_update(lambda _: self.loop.changed())

    def _motion_controls(self) -> None:
        gui, found = self.client.gui, self.renderer.directions
        with gui.add_folder("Motion"):
            self.own_motion = gui.add_checkbox("own motion", True)
            self.motion_seed = gui.add_number(
                "motion seed", 0, min=0, max=2**31 - 1, step=1, disabled=True, hint="Whose motion it has"
            )
        self.own_motion.on_update(lambda _: self._other_motion())
        self.motion_seed.on_update(lambda _: self.loop.changed())
        if not found.components:
            return
        with gui.add_folder("Motion directions", expand_by_default=False):
            layers = tuple(f"layer {k + 1}" for k in range(len(found.components)))
            self.layer = gui.add_dropdown("of", layers)
            self.amounts = [
                gui.add_slider(f"component {c + 1}", -3.0, 3.0, 0.1, 0.0, hint="Standard deviations")
                for c in range(min(COMPONENTS, *(len(x) for x in found.components)))
            ]
            none = gui.add_button("all to zero")
        self.layer.on_update(lambda _: self._layer_chosen())
        for component, slider in enumerate(self.amounts):
            slider.on_update(self._direction_dragged(component))
        none.on_click(lambda _: self._no_directions())

    def _mix_controls(self) -> None:
        gui = self.client.gui
        with gui.add_folder("Mix styles", expand_by_default=False):
            self.mixed = gui.add_slider(
                "first layers", 0, int(self.renderer.config.num_ws), 1, 0, hint="K: have another's style"
            )
            self.mix_seed = gui.add_number("of seed", 1, min=0, max=2**31 - 1, step=1)
        for control in (self.mixed, self.mix_seed):
            control.on_update(lambda _: self.loop.changed())

    def _file_controls(self) -> None:
        gui = self.client.gui
        with gui.add_folder("Files"):
            self.upload = gui.add_upload_button(
                "load a latent", icon=viser.Icon.UPLOAD, hint="Both files that `pv3d invert` wrote"
            )
            self.upload.on_upload(lambda _: self._uploaded())
            for label, make in (("picture", image_file), ("video", video_file), ("mesh", mesh_file)):
                button = gui.add_button(f"save {label}", icon=viser.Icon.DOWNLOAD)
                button.on_click(self._saver(label, make))

    # --- what they do --------------------------------------------------------------------------------------

    def _frame_dragged(self, event: Any) -> None:
        if event.client is None:         # the loop's own, while it plays
            return
        _put(self.play, False)
        self.loop.changed()

    def _to_front(self) -> None:
        with self.client.atomic():
            self.client.camera.position = (0.0, 0.0, self.renderer.model.opened.cameras.RADIUS)
            self.client.camera.look_at = (0.0, 0.0, 0.0)
            self.client.camera.up_direction = (0.0, 1.0, 0.0)
        self.loop.changed()

    def _other_motion(self) -> None:
        self.motion_seed.disabled = bool(self.own_motion.value)
        self._other_length()

    def _other_length(self) -> None:
        """Another latent may have other frames."""
        count = self.renderer.frames(self.portrait())
        _put(self.frame, min(int(self.frame.value), count - 1))
        self.frame.max = max(count - 1, 1)
        self.frame.disabled = count == 1
        self.loop.changed()

    def _layer_chosen(self) -> None:
        for component, slider in enumerate(self.amounts):
            _put(slider, self._amounts.get((self._layer(), component), 0.0))

    def _layer(self) -> int:
        return int(str(self.layer.value).split()[-1]) - 1

    def _direction_dragged(self, component: int) -> Callable[[Any], None]:
        def dragged(event: Any) -> None:
            if event.client is not None:
                self._amounts[self._layer(), component] = float(self.amounts[component].value)
                self.loop.changed(moving=True)

        return dragged

    def _no_directions(self) -> None:
        self._amounts.clear()
        self._layer_chosen()
        self.loop.changed()

    def _saver(self, label: str, make: Saver) -> Callable[[Any], None]:
        def save(_: Any) -> None:
            with (
                self._told(f"Saving the {label}"),
                tempfile.TemporaryDirectory(prefix="pv3d-view-") as folder,
            ):
                file = make(self.renderer, self.shot(), Path(folder), self.marking)
                self.client.send_file_download(file.name, file.read_bytes(), save_immediately=True)

        return save

    def _uploaded(self) -> None:
        file = self.upload.value
        with self._told("Loading the latent") as note:
            name = Path(file.name).name
            if Path(name).suffix not in (".safetensors", ".json") or len(file.content) > MOST_UPLOAD:
                raise ValueError(f"{name}: is no latent; give the two files that `pv3d invert` wrote")
            path = Path(self._uploads.name, name)
            path.write_bytes(file.content)
            tensors = tensors_path(path)
            missing = [p.name for p in (tensors, tensors.with_suffix(".json")) if not p.exists()]
            if missing:
                note.body = f"now load {missing[0]}, too"
                return
            latent = Latent.load(tensors)
            latent.check_model(self.renderer.model.sha256, self.renderer.model.name)
            key = hashlib.sha256(tensors.read_bytes()).hexdigest()
            self.renderer.latents[key] = latent
            self._latents[tensors.stem] = key
            self.source.options = (SEEDS, *self._latents)
            self.source.visible = True
            _put(self.source, tensors.stem)
            self._other_length()

    @contextmanager
    def _told(self, title: str) -> Iterator[Any]:
        """A note on the page while it takes, and what is wrong."""
        note = self.client.add_notification(title, "", loading=True, with_close_button=False)
        try:
            yield note
        except ValueError as error:
            note.title, note.color = f"{title}: failed", "red"
            note.body = " ".join(str(error).split())
        else:
            note.auto_close_seconds = 4.0
        note.loading, note.with_close_button = False, True


def _put(control: Any, value: Any) -> None:
    """Set a control: its setter is not in viser's types."""
    control.value = value


def letterboxed(picture: Picture, aspect: float, side: int = SHOWN_PX) -> Picture:
    """[H, W, 3] of width / height `aspect`, the square picture as large as fits, `side` px: in the middle, or
    at the top of a phone, whose controls are below."""
    aspect = aspect if math.isfinite(aspect) and aspect > 0 else 1.0
    width, height = (round(side * max(aspect, 1.0)), round(side / min(aspect, 1.0)))
    canvas = np.full((height, width, 3), BACKDROP, np.uint8)
    top, left = 0, (width - side) // 2
    canvas[top : top + side, left : left + side] = cv2.resize(
        picture, (side, side), interpolation=cv2.INTER_CUBIC
    )
    return canvas
