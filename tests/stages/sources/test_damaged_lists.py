"""Lists with bytes lost, changed and inserted: every one is read, or refused in one line; nothing else."""

import itertools
import json
import os
import re

import numpy as np
import pytest

from stages.base import Drop
from stages.sources.celebvhq import CelebVHQ
from stages.sources.lists import parts, refuse
from stages.sources.several import Several
from stages.sources.talkinghead import TalkingHead
from stages.sources.urls import Urls
from stages.sources.voxceleb import VoxCeleb, VoxMetadata

CELEB = {
    "meta_info": {},
    "clips": {
        f"M2Ohb0FAaJU_{n}": {
            "ytb_id": "M2Ohb0FAaJU", "duration": {"start_sec": 81.62 + n, "end_sec": 86.17 + n},
            "bbox": {"top": 0.0, "bottom": 0.8815, "left": 0.1964, "right": 0.6922}, "version": "v0.1",
        }
        for n in range(3)
    },
}
VOX = (
    "Identity  : \tid00017\nReference : \t_mjZ87sK6cA\nOffset    : \t2\n\nFRAME \tX \tY \tW \tH \n"
    + "".join(f"{n:06d} \t0.123 \t0.136 \t0.422 \t0.749 \n" for n in range(8809, 8815))
)
TUBES = "--Y9imYnfBw_0000, 720, 1280, 0, 271, 504, 63, 792, 351\n" * 3
URLS = 'url,start,end,box,identity\nhttps://youtu.be/_mjZ87sK6cA,1.5,9,"0.25,0.1,0.75,0.9",anna\n' * 2
JSONL = "".join(
    json.dumps({"url": "https://example.org/v.mp4", "start": n, "box": [0, 0, 1, 1]}) + "\n" for n in (1, 2)
)
META = (
    "video_id,start,end,bbox,fps,width,height,partition,person_id\n"
    "WMh3ye5tBsE,3657,3994,624-48-1018-553,25,1280,720,train,id10005\n"
)
STRANGE = [b"\x00", b"\xff\xfe", b"\r\n", b'"', b"nan", b"-1", b"1e999", b"{}", b"\t", b"null", b"[]"]
ROUNDS = int(os.environ.get("PV3D_MUTANTS", "100"))
LISTS = {
    "celebvhq": ("celebvhq_info.json", json.dumps(CELEB, indent=1), lambda f: CelebVHQ(str(f))),
    "voxceleb": ("id00017/_mjZ87sK6cA/00001.txt", VOX, lambda f: VoxCeleb(str(f.parents[2]), 2)),
    "vox-metadata": ("vox-metadata.csv", META, lambda f: VoxMetadata(str(f))),
    "talkinghead": ("train_video_tubes.txt", TUBES, lambda f: TalkingHead(str(f.parent))),
    "csv": ("list.csv", URLS, lambda f: Urls(str(f))),
    "jsonl": ("list.jsonl", JSONL, lambda f: Urls(str(f))),
}


def damaged(text, rng):
    """The list with one to three injuries."""
    data = bytearray(text.encode())
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, max(len(data), 1)))
        injury = rng.integers(0, 5)
        if injury == 0:
            del data[at:]
        elif injury == 1:
            del data[at:at + int(rng.integers(1, 30))]
        elif injury == 2 and data:
            data[at % len(data)] = int(rng.integers(0, 256))
        elif injury == 3:
            data[at:at] = STRANGE[rng.integers(0, len(STRANGE))]
        else:
            data[at:at] = data[:at][-40:]
    return bytes(data)


def read(source):
    """(units, "") or ([], the refusal)."""
    try:
        return list(Several([source]).clips(None)), ""
    except ValueError as error:
        return [], str(error)


def rejection(clip):
    """Why the first stage rejects the unit as a whole, or empty; its parts are rejected with reasons."""
    try:
        return "" if all(out.reason for out in refuse(clip)) else "no reason"
    except Drop as drop:
        return drop.reason


@pytest.mark.parametrize("name", LISTS)
def test_a_damaged_list_is_read_or_refused_in_one_line(tmp_path, name):
    file, text, make = LISTS[name]
    path = tmp_path / "lists" / file
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(sum(name.encode()))
    count = 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(text, rng))
        clips, refusal = read(make(path))
        count += not refusal
        assert "\n" not in refusal
        assert re.match(r"$|(location|version): |.*:\d+: ", refusal), refusal
        for clip in clips:
            assert re.fullmatch(r"[A-Za-z0-9_-]+", clip.id)
            assert clip.digest()
            if reason := rejection(clip):
                assert reason in ("bad row", "refused url", "nothing wanted", "duplicate")
                continue
            assert re.match(r"https?://", clip.video)
            spans = clip.listed.get("spans", [])
            if not any("chunk" in span for span in spans):
                ids = [part.id for part, start, end in parts(clip) if start < end]
                assert len(ids) == len(set(ids)) == max(len(spans), 1)
    assert 0 < count <= ROUNDS


def test_a_sound_list_is_read_whole(tmp_path):
    for (file, text, make), count in zip(LISTS.values(), itertools.repeat(1)):
        path = tmp_path / "lists" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        clips = list(make(path).clips(None))
        assert len(clips) >= count
        assert any(clip.listed.get("spans") for clip in clips)
