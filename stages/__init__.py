"""Steps: what is done to one clip. Imports `model` and `infra`, never `pipelines`."""

from stages.base import Barred, Drop, GroupStage, Rejected, Resources, Source, Stage, TryLater
from stages.clip import Clip

__all__ = ["Barred", "Clip", "Drop", "GroupStage", "Rejected", "Resources", "Source", "Stage", "TryLater"]
