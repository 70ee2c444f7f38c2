"""Settings that cannot change an output: how fast, and who asks."""

from pipelines.runner import prepare
from pipelines.status import workflow_status


def guarded(tiny, *changes):
    text = tiny.path.read_text().replace(
        "tiny_stages:Mark", "tiny_stages:Guarded\n    guarded: [v01-0]"
    )
    tiny.path.write_text(text)
    return tiny.load(*changes)


def test_a_setting_of_pace_redoes_nothing_and_one_of_access_only_what_was_barred(tiny):
    prepare(guarded(tiny), in_process=True)
    assert tiny.calls().count("Asked v01-0") == 1
    done = prepare(tiny.load("stages.Guarded.patience=9"), in_process=True)
    assert set(done.redone.values()) == {0}
    done = prepare(tiny.load("stages.Guarded.account=anna"), in_process=True)
    assert (done.redone["Guarded"], done.redone["Second"], done.kept) == (1, 1, 8)


def test_what_is_barred_is_not_asked_for_again_and_status_knows_it(tiny):
    workflow = guarded(tiny)
    prepare(workflow, in_process=True)
    prepare(workflow, in_process=True)
    assert tiny.calls().count("Asked v01-0") == 1
    answer, _ = workflow_status(workflow)
    assert answer["stages"]["Guarded"] == {"ok": 7, "rejected": 1, "failed": 0, "todo": 0}
    assert answer["losses"]["gated"]["count"] == 1
    answer, _ = workflow_status(tiny.load("stages.Guarded.account=anna"))
    assert answer["stages"]["Guarded"]["todo"] == 1


def test_a_unit_that_got_through_stays_when_the_account_is_given_up(tiny):
    workflow = guarded(tiny, "stages.Guarded.account=anna")
    prepare(workflow, in_process=True)
    done = prepare(tiny.load(), in_process=True)
    assert set(done.redone.values()) == {0}


def test_other_settings_are_part_of_the_key(tiny):
    step = guarded(tiny).steps[1]
    assert tiny.load("stages.Guarded.value=3").steps[1].key != step.key
    assert tiny.load("stages.Guarded.account=anna").steps[1].key == step.key
    assert tiny.load("stages.Guarded.account=anna").steps[1].barred_key != step.barred_key
    assert tiny.load("stages.Guarded.patience=3").steps[1].barred_key == step.barred_key


def test_a_stage_has_a_time_limit_of_its_own_that_the_workflow_may_change(tiny):
    assert guarded(tiny).steps[1].timeout_s == 77.0
    assert tiny.load("stages.Guarded.timeout_s=5").steps[1].timeout_s == 5.0
    assert tiny.load().steps[0].timeout_s == 3600.0
