"""Variants, switches of the config, and what it refuses."""

import json
import re
import subprocess
import sys

import pytest

from model.config import VARIANTS, ModelConfig, Recipe, Variant, from_dict, to_dict, variant, with_changes


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_survives_json(name):
    made = variant(name)
    assert made.name == name
    assert from_dict(Variant, json.loads(json.dumps(to_dict(made)))) == made


@pytest.mark.parametrize("name", [n for n in VARIANTS if n.endswith("_48")])
def test_a_48_frame_form_differs_in_its_span_alone(name):
    longer, base = variant(name).model, variant(name.removesuffix("_48")).model
    assert with_changes(longer, {"frames_span": 16}) == base
    assert longer.frames_span == 48


def test_the_paper_weights_of_the_three_data_sets():
    recipes = {name: variant(name).recipe for name in ("voxceleb_512", "celebvhq_512", "talkinghead_512")}
    weights = {
        name: (r.lambda_reg, r.lambda_vid, r.lambda_img, r.r1_gamma, r.batch, r.updates)
        for name, r in recipes.items()
    }
    assert weights == {
        "voxceleb_512": (0.6, 0.65, 1.0, 2.0, 16, 300_000),
        "celebvhq_512": (0.05, 0.65, 1.0, 4.0, 16, 300_000),
        "talkinghead_512": (0.5, 0.65, 1.0, 2.0, 16, 300_000),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion.blocks": 9}, "motion.blocks is 9; give 0 to 7"),
        ({"motion.block": 3}, "unknown key 'motion.block' in MotionConfig; did you mean 'blocks'"),
        ({"img_resolution": 100}, "img_resolution is 100; give a power of two"),
        ({"img_resolution": 1024}, "superresolution.input_resolution is 128"),
        ({"plane_axes": "xyz"}, "plane_axes is 'xyz'"),
        ({"plane_axes": ["xy", "xw"]}, "plane_axes is 'xw'; give two letters"),
        ({"camera_conditioning": "some"}, "camera_conditioning is 'some'; give one of all, non, map, mapt"),
        ({"rendering.ray_end": 1.0}, "rendering.ray_end is 1.0; give greater than ray_start 2.25"),
        ({"rendering.ray_end": None}, "rendering.ray_end is None"),
        ({"rendering.samples_fine": -1}, "rendering.samples_fine is -1; give 0 or more"),
        ({"rendering.samples_fine": True}, "rendering.samples_fine is True; give a whole number"),
        ({"w_dim": 51.2}, "w_dim is 51.2; give a whole number"),
        ({"rendering.chunk_rays": 0}, "rendering.chunk_rays is 0; give 1 or more, or null for all rays"),
        ({"mapping_layers": 10**7}, "mapping_layers is 10000000; give 64 or less"),
        ({"z_dim": 2**70, "z_m_dim": 2**70}, "z_dim is 1180591620717411303424; give 2048 or less"),
        ({"rendering.samples_coarse": 10**9}, "rendering.samples_coarse is 1000000000; give 1024 or less"),
        ({"superresolution.channels": [10**9, 1]}, "superresolution.channels is 1000000000; give 2048"),
        ({"plane_axes": ["xy"] * 65}, "the number of plane_axes is 65; give 64 or less"),
        ({"discriminator.frames": 1}, "discriminator.frames is 1; give 2 or more"),
        ({"discriminator.image": False, "discriminator.video": False}, "at least one"),
        ({"discriminator": 3}, "discriminator is 3; give a table"),
    ],
)
def test_a_wrong_setting_names_field_value_and_cure(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        with_changes(variant("voxceleb_512").model, changes)


def test_an_unknown_variant_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'voxceleb_512'"):
        variant("voxceleb512")


def test_a_recipe_refuses_negative_weights_and_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"r1_gamma is -1\.0; give 0 or more"):
        from_dict(Recipe, {"r1_gamma": -1})
    with pytest.raises(ValueError, match="ModelConfig needs 'img_resolution'"):
        from_dict(ModelConfig, {})


@pytest.mark.parametrize("module", ["model", "model.config", "model.camera", "model.times"])
def test_a_light_module_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
