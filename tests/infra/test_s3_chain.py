"""The whole small chain, real stages on films with real faces, in and out of a real S3 server."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import boto3
import pytest

pytest.importorskip("dlib")
pytest.importorskip("av")

from fault_proxy import FaultProxy
from people_store import contents, outcomes

from pipelines.runner import prepare
from pipelines.workflow import load
from stages.sources import portraits
from stages.video import write_video

pytestmark = [pytest.mark.s3, pytest.mark.slow]

OUTAGE_S = float(os.environ.get("PV3D_TEST_OUTAGE_S", "3"))
RATE = float(os.environ.get("PV3D_TEST_FAULTS", "0.05"))     # of all requests
SEED = 184                                   # four kinds of faults after the server has acted in the first 85
FRAMES = 26
WORKFLOW = """\
storage:
  root: s3://pv3d-test/{place}/store
  s3: {{endpoint: "{endpoint}", addressing: path, region: us-east-1, patience_s: 120, cache_gb: 0.01}}
source: {{use: "stages.sources.folder:Folder", location: "s3://pv3d-test/{films}"}}
stages:
  - {{use: "stages.shots:SplitShots", minimum_frames: 24}}
  - {{use: "stages.faces:FollowFace", backend: "stages.backends.dlib:DlibFaces", minimum_frames: 24}}
  - use: stages.smooth:SmoothLandmarks
  - {{use: "stages.crop:AlignCrop", size: 64}}
  - use: stages.cameras:FitCameras
  - {{use: "stages.identity:EmbedFaces", backend: "stages.backends.dlib:DlibIdentity", every: 13}}
  - use: stages.identity:VerifyIdentity
  - {{use: "stages.balance:BalanceIdentities", per_identity: 4}}
  - {{use: "stages.shards:WriteShards", buckets: 3}}
train: {{variant: "model.config:tiny"}}
"""


@dataclass(frozen=True)
class Films:
    """Where they are, and the bytes of each by the path of its address."""

    prefix: str
    bytes: dict[str, int]


def film(path: Path, number: int) -> None:
    """Two people after each other, each for `FRAMES` frames: two clips of one video."""
    scenes = [portraits.SCENES[name] for name in ("eileen-collins-3", "grace-hopper-3")]
    parts = [
        replace(one, width=320, height=320, px_per_mm=1.3, frames=FRAMES, phase=one.phase + number)
        for one in scenes
    ]
    pictures = (portraits.render(one, portraits.load(one.portrait)) for one in parts)
    write_video(path, chain.from_iterable(pictures), portraits.FPS)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        film(folder / f"film{number}.mp4", number)
    return sorted(folder.iterdir())


@pytest.fixture
def films(rgw, files) -> Films:
    client = boto3.Session().client("s3", endpoint_url=rgw.endpoint)
    found = Films(f"films-{uuid.uuid4().hex[:8]}", {})
    for path in files:
        key = f"{found.prefix}/{path.name}"
        client.upload_file(str(path), "pv3d-test", key)
        found.bytes[f"/pv3d-test/{key}"] = path.stat().st_size
    return found


@dataclass
class Place:
    """A store in the bucket, behind a proxy."""

    films: Films
    folder: Path
    name: str

    def load(self, endpoint: str, *changes: str):
        path = self.folder / f"{self.name}.yaml"
        path.write_text(WORKFLOW.format(place=self.name, endpoint=endpoint, films=self.films.prefix))
        return load(path, None, changes)


@pytest.fixture
def place(films, tmp_path):
    return lambda: Place(films, tmp_path, uuid.uuid4().hex[:12])


def made(workflow) -> dict[str, bytes]:
    """What readers see."""
    return contents(workflow.store(), "shards", "manifest", "dataset")


def ends(workflow) -> dict[str, dict[str, tuple]]:
    return outcomes(workflow.store(), [step.name for step in workflow.steps])


def sent(proxy: FaultProxy, films: Films) -> dict[str, float]:
    """How often each film went over the network."""
    return {path: proxy.sent[path] / size for path, size in films.bytes.items()}


def test_the_chain_on_ray_through_faults_and_an_outage_makes_what_it_makes_undisturbed(
    rgw, films, place, ray_session
):
    ray_session.write_text(
        f"[default]\naws_access_key_id = {rgw.access_key}\naws_secret_access_key = {rgw.secret_key}\n"
    )
    quiet, rough = place(), place()
    with FaultProxy(rgw.endpoint) as proxy:
        prepare(quiet.load(proxy.endpoint), in_process=True)
        assert set(sent(proxy, films).values()) == {1.0}
    expected = quiet.load(rgw.endpoint)
    shards, ended = made(expected), ends(expected)
    clips = 2 * len(films.bytes)
    assert [len(units) for units in ended.values()] == [3, *[clips] * 8]
    assert {one[0] for units in ended.values() for one in units.values()} == {"ok"}

    with FaultProxy(rgw.endpoint, rate=RATE, seed=SEED) as proxy:
        proxy.outage(OUTAGE_S, after=80)
        begun = time.monotonic()
        done = prepare(rough.load(proxy.endpoint))
        assert time.monotonic() - begun >= OUTAGE_S
        faults = {fault: count for fault, count in proxy.faults.items() if fault}
        requests = proxy.requests
    assert done.kept == clips
    assert sum(count for fault, count in faults.items() if "after" in fault) >= 3, (faults, requests)
    result = rough.load(rgw.endpoint)
    assert ends(result) == ended         # nothing lost, nothing twice, nothing tried twice
    assert made(result) == shards
    assert not list(result.store().unfinished())
    assert sum(prepare(rough.load(rgw.endpoint), in_process=True).redone.values()) == 0


def test_a_film_goes_over_the_network_once_and_not_once_per_clip_and_stage(rgw, films, place):
    """Without shared copies it goes once for the cut, and for each of its two clips twice."""
    with FaultProxy(rgw.endpoint) as proxy:
        prepare(place().load(proxy.endpoint, "storage.s3.cache_gb=0"), in_process=True)
        assert set(sent(proxy, films).values()) == {5.0}
