"""The sound of clips, for those who ask for it: put `KeepAudio` into the workflow. Nothing else reads any."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages.base import Drop, Stage
from stages.clip import Clip

Samples = NDArray[np.int16]      # [N, channels]

LEAD_S = 0.5                     # decoding starts so long before what is wanted


@dataclass
class KeepAudio(Stage):
    """Keep the sound of every clip as a FLAC file, which WriteShards adds to its sample as `<clip>.flac`.

    It begins with the first frame and is as long as the clip; what the video is silent about is zero. Clips
    of videos without sound pass unchanged: Download brings sound only with a `format` such as "bv*+ba/b".
    Comes after FollowFace, which may shorten clips.
    """

    name: ClassVar[str] = "KeepAudio"
    reads: ClassVar[tuple[str, ...]] = ("video", "fps", "frame_times_s")
    writes: ClassVar[tuple[str, ...]] = ("extra.audio",)

    def setup(self, store: Storage) -> None:
        self._store = store

    def process(self, clip: Clip) -> Iterator[Clip]:
        from stages.video import DecodeError, resolve

        start_s = float(clip.need("frame_times_s")[0])
        try:
            with resolve(self._store, clip.video) as path:
                found = read_audio(path, start_s, start_s + clip.frame_count / clip.fps)
        except DecodeError as error:
            raise Drop("cannot decode the sound", error.detail) from None
        if found is None:
            yield clip
            return
        text = clip.digest() + json.dumps(self.version)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        key = f"aligned/{clip.id}-{digest}.flac"         # beside the frames, and taken down with them
        self._store.write(key, flac(*found))
        yield clip.copy(extra={**clip.extra, "audio": key})


def read_audio(path: Path, start_s: float, end_s: float) -> tuple[Samples, int] | None:
    """(int16 [N, channels], samples per second) of the seconds of a file; None when it has no sound.

    Raises DecodeError.
    """
    import av

    from stages.decoder import DecodeError, errors, open_container

    with open_container(path) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        if stream.codec_context is None or stream.time_base is None:
            raise DecodeError("unknown audio codec")
        with errors():
            if start_s > LEAD_S:
                container.seek(int((start_s - LEAD_S) / stream.time_base), stream=stream, backward=True)
            rate = int(stream.rate)
            samples: Samples | None = None
            resampler: Any = av.AudioResampler(format="s16", layout=stream.layout, rate=rate)
            for frame in container.decode(stream):
                if frame.time is None or frame.time >= end_s:
                    break
                for part in resampler.resample(frame):
                    block = part.to_ndarray().reshape(-1, part.layout.nb_channels)
                    if samples is None:
                        samples = np.zeros((round((end_s - start_s) * rate), block.shape[1]), np.int16)
                    _place(samples, block, round((float(part.time) - start_s) * rate))
            return None if samples is None else (samples, rate)


def flac(samples: Samples, rate: int) -> bytes:
    """A FLAC file of int16 [N, 1 or 2]; equal samples give equal bytes."""
    import av

    layout = {1: "mono", 2: "stereo"}[min(samples.shape[1], 2)]
    data = io.BytesIO()
    with av.open(data, "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("flac", rate=rate, layout=layout)
        stream.codec_context.format = "s16"
        for first in range(0, len(samples), 4096):
            block = np.ascontiguousarray(samples[first:first + 4096, :2])
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.pts = rate, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return data.getvalue()


def _place(samples: Samples, block: Samples, at: int) -> None:
    """Copy what of a block falls into the samples."""
    first, end = max(at, 0), min(at + len(block), len(samples))
    if first < end:
        samples[first:end] = block[first - at:end - at]
