import json
import os
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from infra import kuberay
from pipelines.cli import main
from pipelines.schedule import bytes_of
from pipelines.workflow import load

ROOT = Path(__file__).parents[2]
IMAGE = "registry.example/team/pv3d:1"
WORKFLOW = """\
storage:
  root: s3://faces/pv3d
  tracking: http://mlflow.ml:5000
source:
  use: stages.sources.folder:Folder
  location: s3://faces/videos
policy: {takedown: lists/takedown.txt}
stages:
  - use: stages.shots:SplitShots
  - use: stages.faces:FollowFace
    resources: {cpus: 2, custom: {egress: 1}}
  - use: stages.smooth:SmoothLandmarks
  - use: stages.crop:AlignCrop
    size: 512
  - use: stages.cameras:FitCameras
  - use: stages.identity:EmbedFaces
  - use: stages.identity:VerifyIdentity
  - use: stages.balance:BalanceIdentities
  - use: stages.shards:WriteShards
train:
  variant: model.config:voxceleb_512
  workers: 8
schedule:
  cron: 0 2 * * mon-fri
  timezone: Europe/Berlin
  overlap: forbid
  deadline_s: 72000
  name: pv3d-nightly
  namespace: faces
  image: registry.example/team/pv3d:1
  pull_secrets: [registry]
  secrets: [pv3d-s3, pv3d-mlflow]
  env: {AWS_REGION: eu-central-1, PV3D_WEIGHTS: /weights}
  files: [lists/takedown.txt]
  volumes: [{path: /weights, claim: weights, read_only: true}, {path: /cookies, secret: cookies}]
  service_account: pv3d
  head: {cpus: 4, memory: 16Gi, gpus: 1}
  workers:
    - group: cpu
      min: 1
      max: 40
      cpus: 16
      memory: 64Gi
      disk: 200Gi
      custom: {egress: 1, disks: 3}
      image: registry.example/team/pv3d-data:1
      node_selector: {spot: "true"}
      tolerations: [{key: spot, value: "true", effect: NoSchedule}]
    - {group: gpu, max: 8, cpus: 8, memory: 64Gi, gpus: 1, tolerations: [{key: nvidia.com/gpu}]}
profiles:
  quick:
    train.steps: 10
"""
DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the workflow and what it names."""
    monkeypatch.chdir(tmp_path)
    Path("lists").mkdir()
    Path("lists/takedown.txt").write_text("video:abc\n")
    Path("workflow.yaml").write_text(WORKFLOW)
    return tmp_path


def deploy(*options):
    return CliRunner().invoke(main, ["deploy", *options])


def objects(*options):
    result = deploy(*options)
    assert result.exit_code == 0, result.output
    return list(yaml.safe_load_all(result.stdout))


def of_kind(found, kind):
    (one,) = [o for o in found if o["kind"] == kind]
    return one


def template(found):
    """The RayJob inside the ConfigMap from which the CronJob makes it."""
    (text,) = [o["data"][kuberay.TEMPLATE_KEY] for o in found if kuberay.TEMPLATE_KEY in o.get("data", {})]
    return json.loads(text)


def pods(ray_job):
    """(container, pod) of head and groups."""
    cluster = ray_job["spec"]["rayClusterSpec"]
    templates = [g["template"]["spec"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [(spec["containers"][0], spec) for spec in templates]


# --- the schemas of KubeRay


def closed(schema):
    """The schema of a CRD as jsonschema reads it, with unknown fields refused (the cluster drops them)."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
    if isinstance(found.get("properties"), dict) and "additionalProperties" not in found:
        found["additionalProperties"] = bool(found.get("x-kubernetes-preserve-unknown-fields"))
    return found


@pytest.fixture(scope="module")
def schemas():
    """Kind -> schema of ray.io/v1."""
    place = Path(os.environ.get("PV3D_TEST_REFERENCE", ROOT.parent / "shared" / "reference")) / "kuberay"
    if not place.is_dir():
        pytest.skip(f"no schemas of KubeRay at {place}; set PV3D_TEST_REFERENCE")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for name in ("rayjobs", "raycronjobs"):
        crd = yaml.load((place / f"ray.io_{name}.yaml").read_text(), loader)  # noqa: S506 - a safe loader
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[crd["spec"]["names"]["kind"]] = schema
    return found


@pytest.mark.parametrize("scheduled", [True, False])
def test_the_ray_job_is_valid_for_kuberay(folder, schemas, scheduled):
    if scheduled:
        job = template(objects())
    else:
        Path("workflow.yaml").write_text(re.sub(r"  cron:.*\n", "", WORKFLOW))
        job = of_kind(objects(), "RayJob")
    jsonschema.validate(job, schemas["RayJob"])
    broken = json.loads(json.dumps(job))
    broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(broken, schemas["RayJob"])


def test_the_ray_cron_job_is_valid_for_kuberay_and_runs_the_same(folder, schemas):
    found = objects("--ray-cron-job")
    cron = of_kind(found, "RayCronJob")
    jsonschema.validate(cron, schemas["RayCronJob"])
    assert cron["spec"]["jobTemplate"] == template(objects())["spec"]
    assert {o["kind"] for o in found} == {"ConfigMap", "RayCronJob"}


def test_the_pod_of_the_cron_job_is_valid(folder, schemas):
    pod = of_kind(objects(), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    pod_schema = schemas["RayJob"]["properties"]["spec"]["properties"]["submitterPodTemplate"]
    metadata = pod.pop("metadata")
    jsonschema.validate(pod, pod_schema)
    assert set(metadata) == {"labels"}


# --- the objects


def test_a_schedule_becomes_a_cron_job_with_what_it_needs(folder):
    found = objects()
    assert [o["kind"] for o in found] == [
        "ConfigMap", "ConfigMap", "ServiceAccount", "Role", "RoleBinding", "CronJob"
    ]  # fmt: skip
    cron = of_kind(found, "CronJob")["spec"]
    assert (cron["schedule"], cron["timeZone"]) == ("0 2 * * mon-fri", "Europe/Berlin")
    assert cron["concurrencyPolicy"] == "Forbid"
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == of_kind(found, "ServiceAccount")["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"
    assert pod["containers"][0]["command"][:3] == ["python", "-m", "infra.kube_submit"]
    role, binding = of_kind(found, "Role"), of_kind(found, "RoleBinding")
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == pod["serviceAccountName"]
    assert template(found)["spec"]["activeDeadlineSeconds"] == 72000
    # later than the RayJob's, and its retry's
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 2 * 72000


def test_what_a_container_mounts_is_a_config_map_that_is_rendered(folder):
    found = objects()
    maps = {o["metadata"]["name"]: o["data"] for o in found if o["kind"] == "ConfigMap"}
    pod = of_kind(found, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    specs = [spec for _, spec in pods(template(found))]
    for spec in [pod, *specs]:
        volumes = {v["name"]: v for v in spec["volumes"]}
        assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == set(volumes)
        for volume in volumes.values():
            if "configMap" in volume:
                data = maps[volume["configMap"]["name"]]
                assert {item["key"] for item in volume["configMap"].get("items", [])} <= set(data)
    (script, path) = pod["containers"][0]["command"][2:]
    assert path == f"{pod['containers'][0]['volumeMounts'][0]['mountPath']}/{kuberay.TEMPLATE_KEY}"
    assert script == "infra.kube_submit"


def test_the_workflow_and_its_files_travel_and_load_again_as_they_were(folder, tmp_path_factory, monkeypatch):
    found = objects("--profile", "quick", "--set", "train.seed=7")
    (volume,) = [v for v in pods(template(found))[0][1]["volumes"] if v["name"] == "workflow"]
    (config,) = [o["data"] for o in found if o["metadata"]["name"] == volume["configMap"]["name"]]
    there = tmp_path_factory.mktemp("there")
    for item in volume["configMap"]["items"]:
        (there / item["path"]).parent.mkdir(exist_ok=True)
        (there / item["path"]).write_text(config[item["key"]])
    monkeypatch.chdir(there)
    words = shlex.split(template(found)["spec"]["entrypoint"])
    assert words[:4] == ["cd", kuberay.WORKFLOW_FOLDER, "&&", "exec"]
    arguments = words[words.index("run") + 1 :]
    context = main.commands["run"].make_context("run", list(arguments))      # click takes them
    assert context.params["ray_address"] == "auto"
    workflow = load(context.params["path"], context.params["profile"], context.params["overrides"])
    assert (workflow.train.steps, workflow.train.seed) == (10, 7)
    assert workflow.takedown.entries
    assert workflow.storage.root == "s3://faces/pv3d"


def test_groups_become_worker_groups_with_their_resources(folder):
    job = template(objects())
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token"}
    cpu, gpu = cluster["workerGroupSpecs"]
    assert (cpu["groupName"], cpu["minReplicas"], cpu["replicas"], cpu["maxReplicas"]) == ("cpu", 1, 1, 40)
    assert json.loads(json.loads(cpu["rayStartParams"]["resources"])) == {"egress": 1, "disks": 3}
    assert "resources" not in gpu["rayStartParams"]
    started = [cpu["rayStartParams"], gpu["rayStartParams"], cluster["headGroupSpec"]["rayStartParams"]]
    assert {start["object-store-memory"] for start in started} == {str(512 << 20)}
    (head, head_pod), (worker, worker_pod), (gpus, gpus_pod) = pods(job)
    assert worker["resources"]["limits"] == {"cpu": "16", "memory": "64Gi", "ephemeral-storage": "200Gi"}
    assert gpus["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (head["image"], worker["image"], gpus["image"]) == (IMAGE, f"{IMAGE[:-2]}-data:1", IMAGE)
    assert worker_pod["nodeSelector"] == {"spot": "true"}
    assert worker_pod["tolerations"] == [
        {"operator": "Equal", "key": "spot", "value": "true", "effect": "NoSchedule"}
    ]
    assert gpus_pod["tolerations"] == [{"operator": "Exists", "key": "nvidia.com/gpu"}]
    assert head_pod["serviceAccountName"] == "pv3d"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"     # nothing runs beside the driver
    told = {e["name"]: e["value"] for e in head["env"]}
    assert json.loads(told["PV3D_CLUSTER_MAX"]) == {"CPU": 704, "GPU": 8, "disks": 120, "egress": 40}
    assert told["AWS_REGION"] == "eu-central-1"


def test_a_cluster_that_may_grow_counts_what_it_may_grow_to(monkeypatch):
    ray = pytest.importorskip("ray")
    from infra import cluster
    from infra.workers import use_gpus

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "memory": 1e9})
    assert cluster.total() == {"CPU": 16.0, "memory": 1e9}
    assert not use_gpus(8, "auto")
    monkeypatch.setenv("PV3D_CLUSTER_MAX", json.dumps({"CPU": 704, "GPU": 8, "egress": 40}))
    assert cluster.total() == {"CPU": 704, "GPU": 8, "egress": 40, "memory": 1e9}
    assert use_gpus(8, "auto")


def test_nobody_is_root_and_nothing_may_become_more(folder):
    found = objects()
    cron_pod = of_kind(found, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    submitter = template(found)["spec"]["submitterPodTemplate"]["spec"]
    for spec in [cron_pod, submitter, *(spec for _, spec in pods(template(found)))]:
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_secrets_are_named_and_never_contained(folder, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-value")
    result = deploy()
    assert "s3cr3t-value" not in result.output
    for container, spec in pods(template(list(yaml.safe_load_all(result.stdout)))):
        assert container["envFrom"] == [{"secretRef": {"name": n}} for n in ("pv3d-s3", "pv3d-mlflow")]
        cookies = {"name": "volume-1", "secret": {"secretName": "cookies", "defaultMode": 0o440}}
        assert cookies in spec["volumes"]


def test_names_are_names_of_kubernetes_also_with_what_is_added_to_them(folder):
    Path("workflow.yaml").write_text(WORKFLOW.replace("pv3d-nightly", "n" * 32))
    for one in objects():
        assert DNS.fullmatch(one["metadata"]["name"])
        assert len(one["metadata"]["name"]) <= 63
        assert one["metadata"]["namespace"] == "faces"
    job = f"{'n' * 32}-{29_387_520}"              # as a CronJob names its Jobs: minutes since 1970
    assert len(f"{job}-run") <= 47                               # the longest name that KubeRay takes


def test_the_same_workflow_gives_the_same_bytes(folder):
    assert deploy().stdout == deploy().stdout
    first = deploy("--out", "a")
    assert first.exit_code == 0, first.output
    deploy("--out", "b")
    assert Path("a/pv3d-nightly.yaml").read_bytes() == Path("b/pv3d-nightly.yaml").read_bytes()
    assert list(yaml.safe_load_all(Path("a/pv3d-nightly.yaml").read_text())) == objects()
    assert "kubectl apply -f a/pv3d-nightly.yaml" in first.stdout


def test_without_a_schedule_it_is_a_ray_job_to_apply_by_hand(folder):
    Path("workflow.yaml").write_text(re.sub(r"schedule:\n(  .*\n)+", "", WORKFLOW).replace(
        "policy: {takedown: lists/takedown.txt}\n", "").replace("custom: {egress: 1}", "custom: {}"))
    assert "image: not set" in deploy().stderr
    found = objects("--image", IMAGE)
    assert [o["kind"] for o in found] == ["ConfigMap", "RayJob"]
    assert found[1]["metadata"]["name"] == "pv3d"


def test_json_is_one_object_with_everything(folder):
    result = deploy("--json")
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["objects"] == objects()
    assert answer["notes"] == []


def test_describe_shows_the_schedule(folder):
    result = CliRunner().invoke(main, ["describe", "--json"])
    shown = json.loads(result.stdout.splitlines()[-1])["schedule"]
    assert shown["cron"] == "0 2 * * mon-fri"
    assert [group["group"] for group in shown["workers"]] == ["cpu", "gpu"]


# --- mistakes


def refused(text, *options):
    Path("workflow.yaml").write_text(text)
    result = deploy(*options)
    assert result.exit_code == 2, result.output
    (line,) = [one for one in result.stderr.splitlines() if one.startswith("pv3d: ")]
    return line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0 2 * * mon-fri", "0 25 * * *", "schedule.cron: '25' is no hour"),
        ("0 2 * * mon-fri", "0 2 * * 7", "'7' is no day of the week; use 0 to 6"),
        ("0 2 * * mon-fri", "0 2 * *", "has 4 fields"),
        ("0 2 * * mon-fri", "TZ=UTC 0 2 * * *", "has 6 fields"),
        ("0 2 * * mon-fri", "'*/0 * * * *'", "'*/0' is no minute"),
        ("0 2 * * mon-fri", "'@nightly'", "has 1 fields"),
        ("Europe/Berlin", "Europe/Berln", "schedule.timezone: 'Europe/Berln' is no time zone"),
        ("Europe/Berlin", "Local", "'Local' is no time zone"),
        ("overlap: forbid", "overlap: allow", "schedule.overlap: should be 'forbid'"),
        ("deadline_s:", "deadlines:", "schedule.deadlines: unknown setting, did you mean 'deadline_s'?"),
        ("memory: 64Gi\n", "memory: 64GB\n", "schedule.workers.0.memory: '64GB' is no size"),
        ("memory: 64Gi\n", "memory: '64'\n", "'64' would be bytes; add the unit, as in 64Gi"),
        ("disk: 200Gi", "disc: 200Gi", "schedule.workers.0.disc: unknown setting, did you mean"),
        ("max: 40", "max: 0", "schedule.workers.0.max"),
        ("disks: 3", "disks: 0.5", "schedule.workers.0.custom.disks"),
        ("disks: 3", "disks: 0", "is no custom resource"),
        ("min: 1", "min: 50", "max 40 is below min 50"),
        ("group: gpu", "group: cpu", "two groups 'cpu'"),
        ("name: pv3d-nightly", "name: Nightly", "schedule.name: 'Nightly' is no name"),
        ("name: pv3d-nightly", f"name: {'n' * 33}", "has 33 characters; use 32 at most"),
        ("pv3d:1", "pv 3d:1", "schedule.image: 'registry.example/team/pv 3d:1' is no image"),
        ("env: {", "env: {AWS_SECRET_ACCESS_KEY: x, ", "AWS_SECRET_ACCESS_KEY sounds like a secret"),
        ("claim: weights, ", "", "name a claim or a secret"),
        ("lists/takedown.txt]", "../takedown.txt]", "should be the relative path of a file"),
        ("files: [lists/takedown.txt]", "files: []", "policy.takedown: lists/takedown.txt is a file of"),
        ("lists/takedown.txt]", "lists/takedown.txt, none.csv]", "schedule.files: none.csv: cannot be read"),
        ("root: s3://faces/pv3d", "root: runs", "is a folder of one machine; use s3://"),
        ("tracking: http://mlflow.ml:5000", "tracking: sqlite:///mlflow.db", "storage.tracking"),
        ("http://mlflow.ml", "http://me:pass@mlflow.ml", "workflow.yaml:3: an address with a password"),
        ("location: s3://faces/videos", "location: lists", "source.location: lists is a folder of"),
        ("location: s3://faces/videos", "location: none", "source.location: none is a path of one machine"),
        ("location: s3://faces/videos", "location: /no/such", "source.location: /no/such is a path of one"),
        ("custom: {egress: 1, disks: 3}", "custom: {disks: 1}", "no group has room for stages.FollowFace"),
        ("{group: gpu, max: 8", "{group: gpu, max: 7", "7 GPUs in all, train.workers asks for 8"),
        ("tracking:", "s3: {profile: me}\n  tracking:", "storage.s3.profile"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_place_and_cure(folder, old, new, said):
    assert old in WORKFLOW
    assert said in refused(WORKFLOW.replace(old, new, 1))


@pytest.mark.parametrize("cron", ["*/15 * * * *", "0,30 1-5/2 1 jan-mar sun", "@daily", "5 0 ? * 1-5"])
def test_schedules_that_kubernetes_takes_are_taken(folder, cron):
    Path("workflow.yaml").write_text(WORKFLOW.replace("0 2 * * mon-fri", json.dumps(cron)))
    assert of_kind(objects(), "CronJob")["spec"]["schedule"] == cron


def test_a_folder_on_a_volume_is_a_place_for_everything(folder):
    on_volume = WORKFLOW.replace("s3://faces/pv3d", "/data/pv3d").replace(
        "volumes: [", "volumes: [{path: /data, claim: shared}, "
    )
    Path("workflow.yaml").write_text(on_volume)
    found = objects()
    for container, _ in pods(template(found)):
        assert {"name": "volume-0", "mountPath": "/data"} in container["volumeMounts"]


def test_the_source_may_be_the_demo_or_lie_on_a_volume(folder):
    for place in ("demo:portraits", "/weights/videos"):
        Path("workflow.yaml").write_text(WORKFLOW.replace("s3://faces/videos", place))
        assert objects()


@pytest.mark.parametrize("out", ["afile", "afile/below", "/proc/none"])
def test_an_out_that_can_be_no_folder_is_one_line(folder, out):
    Path("afile").write_text("x")
    assert f"--out {out}: " in refused(WORKFLOW, "--out", out)
    assert Path("afile").read_text() == "x"


def test_an_image_on_the_command_line_is_checked_too(folder):
    assert "--image: 'no image'" in refused(WORKFLOW, "--image", "no image")
    assert pods(template(objects("--image", "other:2")))[0][0]["image"] == "other:2"


def test_copies_of_videos_must_fit_the_disk_of_a_pod(folder):
    text = refused(WORKFLOW.replace("disk: 200Gi", "disk: 9Gi"))
    assert "cpu has a disk of 9Gi" in text
    assert "storage.s3.cache_gb" in text
    objects("--set", "storage.s3.cache_gb=9.5")


@pytest.mark.parametrize(
    ("text", "size"), [("16Gi", 16 << 30), ("512Mi", 512 << 20), ("1.5G", 1.5e9), ("3k", 3000), ("2Ki", 2048)]
)
def test_sizes_are_read_as_kubernetes_reads_them(text, size):
    assert bytes_of(text) == size


def test_a_cron_job_of_ray_needs_a_time(folder):
    assert "schedule.cron" in refused(re.sub(r"  cron:.*\n", "", WORKFLOW), "--ray-cron-job")


def test_the_autoscaler_of_ray_reads_the_groups_as_they_were_meant(folder):
    """The very code that runs beside the head; private to Ray, hence the skip."""
    config = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    derive = getattr(config, "_derive_autoscaling_config_from_ray_cr", None)
    if derive is None:
        pytest.skip("this Ray reads the groups elsewhere")
    job = template(objects())
    cluster = {"metadata": {"name": "c", "namespace": "faces"}, "spec": job["spec"]["rayClusterSpec"]}
    types = derive(cluster)["available_node_types"]
    cpu, gpu = types["cpu"], types["gpu"]
    assert (cpu["min_workers"], cpu["max_workers"]) == (1, 40)
    assert [cpu["resources"][name] for name in ("CPU", "egress", "disks")] == [16, 1, 3]
    assert cpu["resources"]["memory"] == 64 << 30
    assert (gpu["resources"]["CPU"], gpu["resources"]["GPU"]) == (8, 1)
    (head,) = [of for name, of in types.items() if name not in ("cpu", "gpu")]
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
