"""The contract of a stage. Light on purpose: no torch, no Ray, no OpenCV.

A stage is a dataclass. Its fields are its settings, which `workflow.yaml` may set; its class variables
say what it reads and writes and what it costs. `reads` and `writes` name fields of `Clip` (or
`extra.<name>`), so that a broken order of stages is refused before any work. A setting that cannot change the
output, such as a pause, is marked, `field(default=60.0, metadata=PACE)`: to change it redoes nothing.

Where what runs: the constructor runs on the driver, when the workflow is read, and must be cheap;
`setup` and `process` run in a worker, `setup` once per worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from infra.storage import Storage
    from stages.clip import Clip


PACE: Mapping[str, bool] = {"output": False}             # how fast, how often: never what
ACCESS: Mapping[str, bool] = {"output": False, "access": True}   # who asks: only what was `Barred` is redone


class Drop(Exception):  # noqa: N818 - not an error: what a filter does
    """Reject the clip (or video) in hand. `reason` is short and is counted; `detail` holds the figures.

    Raise it for unwanted data and for input that is broken. Any other exception is a bug and stops the run.
    """

    state: ClassVar[str] = "rejected"

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Barred(Drop):
    """Reject for who asks, not for what it is: tried again when settings with `ACCESS` change."""


class LostOutputError(Exception):
    """What a group stage made in an earlier run is gone. `of` tells the clips that it was made of: their
    groups are done again."""

    def __init__(self, what: str, of: Callable[[Clip], bool]) -> None:
        super().__init__(what)
        self.of = of


class LostInputError(Exception):
    """A file (key) that a `field` of the clip `unit` names is gone from the store, or damaged: the stage that
    wrote the field is done again."""

    def __init__(self, key: str, field: str, unit: str) -> None:
        super().__init__(key, field, unit)
        self.key, self.field, self.unit = key, field, unit

    def __str__(self) -> str:
        return f"{self.key} of the clip {self.unit} is gone or damaged"


class TryLater(Drop):
    """Give up the clip in hand for now: nothing is wrong with it, and the next run tries it again."""

    state: ClassVar[str] = "failed"


@dataclass(frozen=True)
class Rejected:
    """One output that a stage rejects while it keeps others, such as a shot that is too short."""

    clip: Clip
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage holds: CPU cores, GPUs (fractions allowed), custom Ray resources."""

    cpus: float = 1.0
    gpus: float = 0.0
    custom: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in [("cpus", self.cpus), ("gpus", self.gpus), *self.custom.items()]:
            if value < 0:
                raise ValueError(f"resources.{name}: {value} is negative; give 0 or more")


class Source:
    """Where videos come from: a dataclass of settings whose `clips` names every video, decoding nothing."""

    names_once: ClassVar[bool] = False               # no two of its units are of one video

    def clips(self, store: Storage) -> Iterator[Clip]:
        """Yield one `Clip` per listed video with `id`, `source`, `video` and what the list says of it.

        Runs on the driver. Raises ValueError, naming the setting and the cure, when nothing can be listed.
        """
        raise NotImplementedError


class Stage:
    """One step for one clip: maps, filters or cuts. Subclasses are dataclasses."""

    name: ClassVar[str]                              # how workflow.yaml, records and reports call it
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    resources: ClassVar[Resources] = Resources()
    version: ClassVar[int] = 1                       # raise it when the same settings give other output
    timeout_s: ClassVar[float] = 3600.0              # of one unit, unless the workflow says otherwise
    fetches: ClassVar[bool] = False                  # brings videos into the store; see `lost` and `release`

    def setup(self, store: Storage) -> None:
        """Load models and open what is needed, once per worker, before the first `process`."""

    def lost(self, store: Storage, clip: Clip) -> bool:
        """Whether the video of `clip`, which came out of this stage, is no longer in the store."""
        return False

    def release(self, store: Storage, clip: Clip) -> None:
        """Called on the driver when no stage needs the video of `clip`, which came out of this, any more."""

    def reads_video(self) -> bool:
        """Whether the stage looks at the pixels of the source; with these settings, if it depends on them."""
        return "video" in self.reads

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        """Yield none, one or many clips. Raise `Drop` to reject `clip` as a whole.

        Set fields on the clip that was received or on copies of it; never write into its arrays, which may
        be shared and read-only.
        """
        raise NotImplementedError


class GroupStage:
    """One step that sees all clips of a group at once, such as a balance or a shard.

    A stage whose groups may have 100,000 clips says `whole_clips = False`: of their arrays it then gets those
    that `reads` names, and of what it yields the fields that `writes` names are put into the whole clips.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    resources: ClassVar[Resources] = Resources()
    version: ClassVar[int] = 1
    timeout_s: ClassVar[float] = 3600.0
    whole_clips: ClassVar[bool] = True

    def setup(self, store: Storage) -> None:
        """As `Stage.setup`."""

    def follow(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Told before `setup` which stages came before, and itself: stage, use, version, settings of each."""

    def group(self, clip: Clip) -> str:
        """Name the group of a clip. All clips form one group unless a stage says otherwise."""
        return "all"

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        """Yield every clip of the group exactly once, as it is or as `Rejected`. `clips` are sorted by id."""
        raise NotImplementedError

    def finish(self, store: Storage, clips: Iterator[Clip]) -> str | None:
        """Called once, on the driver, when every group is done, with all clips that were kept, sorted by id.

        They come one at a time, without their arrays: there may be millions.
        For what needs all groups, such as the commit of a dataset; must be cheap and safe to repeat. Returns
        what `standing` says from then on.
        """
        return None

    def standing(self, store: Storage) -> str | None:
        """What a `finish` left in the store, in a word. When it is another's, `finish` is called again."""
        return None
