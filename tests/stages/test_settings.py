"""What holds for the settings of every stage and source."""

import dataclasses
import importlib
import pkgutil

import pytest

import stages
from stages.base import GroupStage, Source, Stage

MODULES = [one.name for one in pkgutil.iter_modules(stages.__path__, "stages.")] + [
    f"stages.sources.{name}" for name in ("celebvhq", "folder", "official", "talkinghead", "urls", "voxceleb")
]


@pytest.mark.parametrize("module", MODULES)
def test_a_default_is_what_a_worker_that_is_told_it_makes_of_it(module):
    """Names of files are hashes of settings: 128 here and 128.0 there would be two files."""
    found = importlib.import_module(module)
    classes = [one for one in vars(found).values() if isinstance(one, type) and dataclasses.is_dataclass(one)]
    for one in classes:
        if issubclass(one, (Stage, GroupStage, Source)):
            for field in dataclasses.fields(one):
                if str(field.type).startswith("float") and field.default is not dataclasses.MISSING:
                    assert isinstance(field.default, (float, type(None))), f"{one.__name__}.{field.name}"
