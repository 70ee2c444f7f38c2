import pytest

from pipelines.document import parse
from pipelines.workflow import WorkflowError, load


def refused(tiny, text=None, *changes, profile=None):
    """The one line of a refusal, without the folder."""
    if text is not None:
        tiny.path.write_text(text)
    with pytest.raises(WorkflowError) as error:
        load(tiny.path, profile, changes)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(tiny.path), "workflow.yaml")


@pytest.fixture
def text(tiny):
    return tiny.path.read_text()


def test_a_workflow_is_built(tiny):
    workflow = tiny.load()
    assert [step.name for step in workflow.steps] == ["Cut", "Mark", "Second", "Keep", "Write"]
    assert workflow.storage.root == str(tiny.root)
    assert workflow.train.steps == 300_000
    assert workflow.source.count == 4


def test_profiles_and_overrides_change_values_and_the_last_one_holds(tiny):
    assert load(tiny.path, "more").source.count == 6
    assert load(tiny.path, "more", ["source.count=7"]).source.count == 7
    assert load(tiny.path, None, ["source.count=7", "source.count=8"]).source.count == 8


def test_a_source_may_be_a_list_of_sources(tiny, text):
    head, found, tail = text.partition("source:\n")
    assert found
    body, _, rest = tail.partition("\nstages:")
    one = "".join(f"    {line.strip()}\n" for line in body.splitlines() if line.strip())
    both = "".join("  - " + one.lstrip() for _ in range(2))
    tiny.path.write_text(f"{head}source:\n{both}\nstages:{rest}")
    clips = list(tiny.load().source.clips(None))
    assert [c.id for c in clips] == [f"v{i:02d}" for i in range(4)] + [f"v{i:02d}-2" for i in range(4)]
    tiny.path.write_text(f"{head}source: []\nstages:{rest}")
    assert "the list is empty" in refused(tiny)
    tiny.path.write_text(f"{head}source:\n{both}    cuont: 3\nstages:{rest}")
    assert "source[1].cuont: unknown setting" in refused(tiny)


def test_a_profile_may_be_nested(tiny, text):
    tiny.path.write_text(text + "  nested:\n    stages:\n      Mark: {value: 2.5, workers: {max: 1}}\n")
    step = load(tiny.path, "nested").steps[1]
    assert step.stage.value == 2.5
    assert step.workers.max == 1


def test_another_class_starts_with_settings_of_its_own(tiny, text):
    tiny.path.write_text(text.replace("Mark\n", "Mark\n    value: 3\n    resources: {cpus: 2}\n", 1))
    step = tiny.load("stages.Mark.hang=[a]", "stages.Mark.use=tiny_stages:Other").steps[1]
    assert (step.stage.value, step.resources.cpus, step.name) == (1.0, 1.0, "Other")


def test_relative_places_are_made_absolute(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = tiny.load("storage.root=here", "storage.tracking=sqlite:///runs/m.db").storage
    assert storage.root == str(tmp_path / "here")
    assert storage.tracking == f"sqlite:///{tmp_path}/runs/m.db"
    assert tiny.load("storage.root=s3://bucket/x", "storage.tracking=http://h:5").storage.root == "s3://bucket/x"


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ("train:\n", "trian:\n", "workflow.yaml:11:1: trian: unknown key, did you mean 'train'?"),
        ("tiny_stages:Mark\n", "tiny_stages:Mark\n    valeu: 3\n",
         "workflow.yaml:8:5: stages.Mark.valeu: unknown setting, did you mean 'value'?"),
        ("tiny_stages:Mark\n", "tiny_stages:Mark\n    worker: {max: 3}\n",
         "workflow.yaml:8:5: stages.Mark.worker: unknown setting, did you mean 'workers'?"),
        ("tiny_stages:Mark\n", "tiny_stages:Mark\n    workers: {mx: 3}\n",
         "workflow.yaml:8:15: stages.Mark.workers.mx: unknown setting, did you mean 'max'?"),
        ("tiny_stages:Mark\n", "tiny_stages:Mark\n    value: much\n",
         "workflow.yaml:8:12: stages.Mark.value: should be a valid number, not \"much\""),
        ("tiny_stages:Mark\n", "tiny_stages:Mark\n    drop: [a, 3]\n",
         "workflow.yaml:8:15: stages.Mark.drop.1: should be a valid string, not 3"),
        ("model.config:tiny", "model.config:tny",
         "workflow.yaml:12:12: train.variant: model.config has no 'tny', did you mean 'tiny'?"),
        ("model.config:tiny\n", "model.config:tiny\n  steps: 0\n",
         "workflow.yaml:13:10: train.steps: should be greater than or equal to 1, not 0"),
        ("model.config:tiny\n", "model.config:tiny\n  steps: '24'\n",
         "workflow.yaml:13:10: train.steps: should be a valid integer, not \"24\""),
        ("model.config:tiny\n", "model.config:tiny\n  zero_stage: 3\n",
         "train.zero_stage: 3 splits the weights"),
        ("  variant: model.config:tiny\n", "  steps: 3\n", "train.variant: missing; set it"),
        ("tiny_stages:Keep", "tiny_stages:Kep",
         "stages[3].use: tiny_stages has no 'Kep', did you mean 'Keep'?"),
        ("tiny_stages:Keep", "tiny_stage:Keep", "stages[3].use: no module 'tiny_stage'; check the spelling"),
        ("tiny_stages:Keep", "tiny_stages.Keep",
         "'tiny_stages.Keep' is no import path; write package.module:Name"),
        ("tiny_stages:Keep", "tiny_stages:note", "tiny_stages:note is not a stage"),
        ("  - use: tiny_stages:Keep\n", "  - most: 3\n", "name a stage with 'use: package.module:Name'"),
        ("tiny_stages:Keep", "tiny_stages:Mark",
         "stages.Mark: a second stage of this name; give one of them a 'name:'"),
        ("  root: ", "  rot: ", "workflow.yaml:2:3: storage.rot: unknown setting, did you mean 'root'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_place_and_hint(tiny, text, find, replace, message):
    assert message in refused(tiny, text.replace(find, replace, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.Mark.valeu=3", "stages.Mark.valeu: unknown setting, did you mean 'value'?"),
        ("stages.Mrk.value=3", "stages.Mrk.value: no stage is called 'Mrk', did you mean 'Mark'?"),
        ("stage.Mark.value=3", "stage.Mark.value: unknown key, did you mean 'stages'?"),
        ("stages.Mark=3", "name a stage and a setting"),
        ("train.steps.x=3", "train.steps: should be a valid integer"),
        ("train.variant.x=3", "variant holds one value"),
        ("train.steps", "write key=value"),
        ("train.steps=many", 'train.steps: should be a valid integer, not "many"'),
        ("evaluate.metrics=[stages.metrics.nothing]", "evaluate.metrics: no module 'stages.metrics.nothing'"),
        ("stages.Mark.resources.cpus=-1", "stages.Mark.resources.cpus: should be greater than or equal"),
        ("source.count=[", "the value is not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_override_names_the_override(tiny, change, message):
    text = refused(tiny, None, change)
    assert text.startswith(f"--set {change}: ")
    assert message in text


def test_an_unknown_profile_is_refused(tiny):
    assert "--profile mor: unknown, did you mean 'more'?" in refused(tiny, profile="mor")


def test_a_mistake_inside_a_profile_has_its_place_there(tiny, text):
    tiny.path.write_text(text.replace("source.count: 6", "source.cuont: 6"))
    message = refused(tiny, profile="more")
    assert message == "workflow.yaml:15:5: source.cuont: unknown setting, did you mean 'count'?"


def test_a_stage_that_reads_what_nobody_wrote_is_refused(tiny, text):
    without = text.replace("  - use: tiny_stages:Mark\n", "")
    assert refused(tiny, without).startswith(
        "workflow.yaml:7:5: stages.Second: reads 'face_boxes', which nothing before it writes; "
    )
    swapped = without.replace("tiny_stages:Keep\n", "tiny_stages:Keep\n  - use: tiny_stages:Mark\n")
    assert "'Mark' does: put it before 'Second'" in refused(tiny, swapped)


def test_the_crop_must_have_the_size_that_the_model_makes(tiny, text):
    for ours, theirs in {
        "tiny_stages:Cut": "stages.shots:SplitShots", "tiny_stages:Mark": "stages.faces:FollowFace",
        "tiny_stages:Second": "stages.smooth:SmoothLandmarks",
        "tiny_stages:Keep": "stages.crop:AlignCrop\n    size: 128", "  - use: tiny_stages:Write\n": "",
    }.items():  # fmt: skip
        text = text.replace(ours, theirs)
    message = refused(tiny, text)
    assert "workflow.yaml:10:11: stages.AlignCrop.size: 128 px, but model.config:tiny makes 64 px" in message


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("stages.backends.dlb:DlibFaces", "no module 'stages.backends.dlb'"),
        ("stages.backends.dlib:DlbFaces",
         "stages.backends.dlib has no 'DlbFaces', did you mean 'DlibFaces'?"),
    ],
)  # fmt: skip
def test_a_backend_that_does_not_exist_is_refused_before_any_work(tiny, text, backend, message):
    text = text.replace("tiny_stages:Cut", "stages.shots:SplitShots").replace("tiny_stages:Write", "x")
    text = text.replace("tiny_stages:Mark\n", f"stages.faces:FollowFace\n    backend: {backend}\n")
    assert refused(tiny, text.replace("  - use: x\n", "")) == (
        f"workflow.yaml:8:14: stages.FollowFace.backend: {message}"
        + ("; check the spelling" if "no module" in message else "")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "w:2:1: a: written twice (first at w:1:1); keep one"),
        ("a: [1\n", "w:2:1: not YAML"),
        ("a: !!python/object:os.system x\n", "YAML tags such as"),
        ("a: &x [*x]\n", "an alias inside the value that it names"),
        ("", "w: empty"),
    ],
)
def test_yaml_that_means_nothing_sure_is_refused(text, message):
    with pytest.raises(WorkflowError) as error:
        parse(text, "w")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-3", 0.002), ("1_000", "1_000"), ("no", "no"), ("yes", "yes"), ("on", "on"), ("12:30", "12:30"),
        ("true", True), ("~", None), ("", None), ("0o17", 15), ("017", 17), ("0x1f", 31), ("-3", -3),
        (".5", 0.5), ("'3'", "3"), ("1.", 1.0), ("-.inf", float("-inf")), ("2026-11-21", "2026-11-21"),
        ("1e3", 1000.0),
        ("a:b", "a:b"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    read = parse(f"key: {text}\n", "w").plain()["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_file_that_is_missing_or_no_text_is_one_line(tiny, tmp_path):
    with pytest.raises(WorkflowError, match=r"none\.yaml: no such file; give the path of a workflow"):
        load(tmp_path / "none.yaml")
    tiny.path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in refused(tiny)


def test_the_key_of_a_stage_depends_on_its_settings_alone(tiny):
    key = tiny.load().steps[1].key
    assert tiny.load("stages.Mark.workers.max=2", "stages.Mark.name=other").steps[1].key == key
    assert tiny.load("stages.Mark.value=2").steps[1].key != key


def test_a_workflow_that_would_fill_the_memory_is_refused_at_once(tiny):
    assert "nested too deeply" in refused(tiny, "a: " + "[" * 20_000)
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    assert "more than 100,000 values; this is no workflow" in refused(tiny, bomb)
    assert "bytes; this is no workflow" in refused(tiny, "# comment\n" * 200_000)


def test_an_override_that_python_cannot_read_is_refused_in_its_place(tiny):
    assert "nested too deeply" in refused(tiny, None, "train.steps=" + "[" * 20_000)
    assert "train.steps: should be a valid integer" in refused(tiny, None, "train.steps=" + "9" * 5000)


@pytest.mark.parametrize("root", ['""', '" "', '"a\\0b"', '"a\\nb"'])
def test_a_storage_root_that_is_no_path_is_refused(tiny, root):
    assert "storage.root: should be the path of a folder" in refused(tiny, None, f"storage.root={root}")


@pytest.mark.parametrize("variant", ["os.path:join", "json:dumps", "os:sep"])
def test_a_variant_that_is_no_function_without_arguments_is_refused(tiny, variant):
    message = refused(tiny, None, f"train.variant={variant}")
    assert f"train.variant: {variant} does not return a model.config.Variant" in message


def test_workers_that_cannot_share_the_batch_are_refused_before_any_work(tiny, text):
    assert "train.batch: 7 videos cannot be shared by 2 workers" in refused(tiny, None, "train.batch=7")
    three = text.replace("train:\n", "train:\n  workers: 3\n")
    assert "workflow.yaml:12:12: train.batch: 4 videos cannot be shared by 3" in refused(tiny, three)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_that_is_not_finite_is_refused(tiny, value):
    assert "stages.Mark.value: should be a finite number" in refused(tiny, None, f"stages.Mark.value={value}")
    assert "storage.lease_s: should be a finite number" in refused(tiny, None, f"storage.lease_s={value}")


def test_changes_of_the_variant_are_checked_when_the_workflow_is_read(tiny, text):
    assert "4 videos cannot be shared by 2 workers in 3 parts" in refused(tiny, None, "train.accumulate=3")
    assert "train.model: " in refused(tiny, None, "train.model.rendering.resolution=0")
    told = refused(tiny, text.replace("train:\n", "train:\n  recipe: {r1_gama: 4}\n"))
    assert "12:11: train.recipe: unknown key 'r1_gama' in Recipe; did you mean 'r1_gamma'?" in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.seed=-1", "train.seed"), ("train.seed=4294967296", "train.seed"),
        ("train.env={A=B: x}", "train.env: 'A=B' is no name of a variable"),
        ('train.env={A: "\\0"}', "train.env: the value of A holds a NUL"),
        ("stages.Mark.resources.gpus=1.5", "stages.Mark.resources.gpus: should be a part of one"),
        ("stages.Mark.resources.custom={CPU: 1}", "stages.Mark.resources.custom: 'CPU' is no name"),
        ("stages.Mark.resources.custom={disk: 1.5}", "custom: 'disk' should be a part of one"),
        ("stages.Mark.resources.custom={disk: -1}", "custom: 'disk' should be a part of one"),
        ("storage.lease_s=1e9", "storage.lease_s"), ("stages.Mark.workers.min=10001", "workers.min"),
        ("stages.Mark.timeout_s=0.5", "timeout_s"), ("register.name=' a'", "register.name"),
        ('register.name="a\\nb"', "register.name"), ('register.name="a\\n"', "register.name"),
        ("storage.root=s3:/b/x", "storage.root: 's3:/b/x' is neither a folder nor s3://bucket/prefix"),
        ("storage.root=~nobody-at-all/x", "storage.root: '~nobody-at-all/x': there is no user"),
        ("evaluate={metrics: ['..']}", "evaluate.metrics: no module '..'"),
        ("evaluate={metrics: ['']}", "evaluate.metrics: no module ''"),
        ("evaluate={metrics: ['a..b']}", "evaluate.metrics: no module 'a..b'"),
    ],
)
def test_a_value_out_of_bounds_is_refused(tiny, change, said):
    assert said in refused(tiny, None, change)


def test_values_at_their_bounds_are_taken(tiny):
    workflow = tiny.load(
        "train.seed=4294967295", "train.env={NCCL_DEBUG: INFO}", "stages.Mark.resources.gpus=0.25",
        "stages.Mark.resources.custom={disk: 2, net: 0.5}", "register.name='a b'", "stages.Mark.timeout_s=1",
    )  # fmt: skip
    assert workflow.steps[1].resources.custom == {"disk": 2, "net": 0.5}
    assert workflow.register.name == "a b"
