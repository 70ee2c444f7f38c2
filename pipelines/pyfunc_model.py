"""The registered model, as MLflow stores and runs it: this very file travels with each version.

It runs without this project: the networks come from a copy of `model/` under a name of its own, which the
version carries, so that neither an installed project nor a `model.py` in the working folder can stand in its
place.

Input, one row per frame: `seed` (the person and the motion), `time` in [0, 1], and the camera as `yaw_deg`
and `pitch_deg` on the evaluation sphere or as `camera`, the 25 numbers. Rows of one seed are one clip, in
their order. Output: uint8 [rows, H, W, 3] RGB.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas
from mlflow.models import set_model

PSI = 1.0
MAPPING = ("first", "front")


class PortraitVideos(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Frames from seeds, times and cameras."""

    def load_context(self, context: Any) -> None:
        """Build the generator from the version's own code, config and weights, on the GPU when there is
        one."""
        import torch
        from safetensors.torch import load_file

        self.card = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        package = self.card["package"]
        config = importlib.import_module(f"{package}.config")
        self.clips = importlib.import_module(f"{package}.clips")
        self.cameras = importlib.import_module(f"{package}.camera")
        settings = config.from_dict(config.ModelConfig, self.card["model"])
        self.generator = importlib.import_module(f"{package}.generator").Generator(settings)
        self.generator.load_state_dict(load_file(context.artifacts["weights"]))
        self.generator.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> Any:
        """`model_input`: see the top of this file. `params`: `psi`, and `mapping`, the camera that
        the mapping network sees: that of the clip's `first` row, or the `front` one."""
        rows = {str(name): list(model_input[name]) for name in model_input}
        psi, mapping = float((params or {}).get("psi", PSI)), (params or {}).get("mapping", MAPPING[0])
        if mapping not in MAPPING:
            raise ValueError(f"mapping {mapping!r}: give {' or '.join(MAPPING)}")
        if not np.isfinite(psi):
            raise ValueError(f"psi {psi}: give a finite number, such as 0.7")
        seeds = [int(seed) for seed in rows["seed"]]
        times = np.asarray(rows.get("time", [0.0] * len(seeds)), np.float32)
        seen = np.stack([self._camera(rows, row) for row in range(len(seeds))])
        shared = self.cameras.canonical_camera().encode() if mapping == "front" else None
        side = self.generator.config.img_resolution
        out = np.zeros((len(seeds), side, side, 3), np.uint8)
        for seed in dict.fromkeys(seeds):
            mine = [row for row, other in enumerate(seeds) if other == seed]
            parts = self.clips.render_clip(
                self.generator, seed, seen[mine], times[mine], psi=psi, mapping_camera=shared
            )
            out[mine] = np.concatenate([self.clips.to_uint8(part.image[0]) for part in parts])
        return out

    def _camera(self, rows: dict[str, list[Any]], row: int) -> Any:
        given = rows["camera"][row] if "camera" in rows else None
        if given is not None and np.ndim(given) == 1:
            return np.asarray(given, np.float32)
        yaw, pitch = (float(rows[name][row]) if name in rows else 0.0 for name in ("yaw_deg", "pitch_deg"))
        if yaw == 0 and pitch == 0:
            return self.cameras.canonical_camera().encode()
        return self.cameras.orbit(yaw, pitch).encode()


set_model(PortraitVideos())
