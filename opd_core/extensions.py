"""What a config chooses by name, and what each of it says of itself.

Where a part is defined it says what it needs; the config's validation, the stages and the loss ask
it here and know no names. `registry.py` tells how another package adds one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from opd_core.registry import Registry
from opd_core.tracker import About, Tracker
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    # Against the order of the rooms, for the types alone: what authors of parts write against.
    from opd_core.config.load import Config
    from opd_core.config.section import Section
    from opd_core.config.sections import FocusSection, UpdateSection
    from opd_core.engines.base import OpenedEngine
    from opd_core.prompts.batches import ExampleEncoder
    from opd_core.types import Span
    from opd_core.update.chunk import Chunk
    from opd_core.update.loss_inputs import LossInputs

Settings: TypeAlias = "type[Section] | None"
"""What a part takes in the config: an objective in [update.NAME], a curriculum in [focus.NAME], a
template in [prompt.NAME], an engine in [NAME]. `of(NAME)` of these sections, and of the `Config`
for engines, is what is given there, or its defaults."""
TeacherNeed = Literal["nothing", "logprobs", "distribution", "vocabulary"]
Quantise = Literal["none", "fp8", "int4"]
"""How a teacher's weights lie in memory (`teacher.quantise`)."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises, and what has to be there for it."""

    about: str
    """What it is, in one sentence."""
    loss: Callable[[LossInputs, Chunk, Tensor | None], Tensor]
    """(..., importance weights [C] or None) -> the loss of each completion token, [C]. Its module
    imports torch where it computes, so that a config is read without. Its settings are
    `inputs.settings.of(NAME)`."""
    settings: Settings = None
    of_teacher: TeacherNeed = "nothing"
    """`logprobs` of the sampled tokens; its `distribution`, of which the kept top-k will do; or
    that over the whole `vocabulary`, from kept hidden states."""
    on_policy_only: bool = False
    """Its gradient goes through the ratio pi / pi_v of the sampled token, and is one only where the
    policy itself has sampled."""
    clips_ratio: bool = False
    """The ratio has to be exactly 1 before the first step: pi_v is always the trainer's own."""
    needs_groups: bool = False
    """It compares all answers to an example: `Fact.advantage`, by [update.grpo]."""
    reference: Callable[[UpdateSection], bool] | None = None
    """Whether these settings, [update], need the base student's log-probs (`Chunk.reference_C`)."""
    importance: Literal["token", "prefix"] | None = None
    """The weights that mend it where another engine has sampled, which `update.tis = "auto"` takes:
    `token` for a loss of the sampled token, `prefix` for one that is exact at its state (the
    sampled token's own ratio is of no use to it). None: it has none."""

    @property
    def needs_teacher(self) -> bool:
        return self.of_teacher != "nothing"

    @property
    def needs_distribution(self) -> bool:
        return self.of_teacher in ("distribution", "vocabulary")

    @property
    def importance_levels(self) -> tuple[Literal["token", "prefix", "sequence"], ...]:
        """The values of `update.tis` that fit it, what `auto` takes first."""
        return () if self.importance is None else (self.importance, "sequence")


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Which rollouts are worth an update."""

    about: str
    """What it takes, in one sentence."""
    pick: Callable[[pl.DataFrame, FocusSection, int], pl.DataFrame]
    """(units, [focus], seed) -> the units in the columns of `focus.picked.PICKED`."""
    settings: Settings = None
    ranked: Callable[[FocusSection], pl.Expr] | None = None
    """Which units it ranks by the disagreement; None: none, it needs no answers of the teacher."""
    needs_student: bool = True
    """Whether a unit without an IoU is left out."""
    min_teacher_iou: float | None = None
    """Of focus.min_teacher_iou where the config does not give it; None: that section's default."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How a question is put, and how an answer is written and read."""

    text: str
    """With `{query}`, for `templates.named.ask`."""
    format_answer: Callable[[Span], str]
    parse_span: Callable[[str], Span | None]
    """The span of an answer, or None where it holds none of this form."""
    reader: str
    """What reads the answers, as part of the question's key: changed when another span is found."""
    about: str = field(default="", compare=False)
    """What it is for, in one sentence; empty for a config's own words."""
    settings: Settings = field(default=None, compare=False)
    configured: Callable[[Any], PromptTemplate] | None = field(default=None, compare=False)
    """The template that such settings make of it; `reader` has to tell what they change."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What samples from a policy, and may score for a teacher."""

    about: str
    """What it is, in one sentence."""
    opened: Callable[[Config, Path, str, ExampleEncoder, int], AbstractContextManager[OpenedEngine]]
    """(config, folder of a checkpoint, its dtype, encoder, tokens of the longest answer) -> what is
    open for one stage, whose `name` is that of the config. Imports what is heavy inside, so that a
    config is read without."""
    settings: Settings = None
    needs: tuple[str, ...] = ()
    """Packages, of which one has to be installed."""
    scorer: Callable[[Config], tuple[str, str]] | None = None
    """Itself with its version, and the attention it runs, as a score's `scorer` and its content
    hash have them, which name its precision and its settings too; asked while it is not open. None:
    it cannot score."""
    whole_distribution: bool = False
    """Its scores may have the entropy and the hidden states."""
    is_the_trainer: bool = False
    """It samples by the trainer's own forward pass: `update.tis = "auto"` has nothing to mend."""
    repeats: Callable[[], str] | None = None
    """The `version` of which one seed gives the same tokens again, in float32 on a CPU, so that an
    audit samples again; None: it scores what was sampled."""
    room: Callable[[Config, ExampleEncoder, int], int] | None = None
    """(config, encoder, tokens of the longest answer) -> the tokens that it has room for;
    None: as many as the model."""
    room_setting: str = ""
    """The key that raises it."""
    dtype: Callable[[Config], str | None] | None = None
    """The precision that it runs every model in; None: that of the model."""
    quantises: tuple[Quantise, ...] = ()
    """The values of `teacher.quantise` in which it opens a teacher, beside "none"."""
    opened_quantised: (
        Callable[
            [Config, Path, str, ExampleEncoder, int, Quantise], AbstractContextManager[OpenedEngine]
        ]
        | None
    ) = None
    """As `opened`, with the last of its arguments one of `quantises`; None where there are none."""

    identity: Callable[[Config], str] | None = None
    """What stands for the hash of a teacher's weights where its folder has none, because the model
    is elsewhere; None: its weights have to be here."""

    def installed(self) -> str | None:
        """The version of what it needs; None where that is not installed."""
        return _installed(self.needs)


@dataclass(frozen=True, slots=True)
class TrackerKind:
    """What shows a run's numbers as curves."""

    about: str
    """What it is, in one sentence."""
    opened: Callable[[About], Tracker]
    """The run as it is described to it -> what is told of points. Imports what is heavy inside."""
    needs: tuple[str, ...] = ()
    """Packages, of which one has to be installed."""
    look: str = ""
    """The command that shows what it keeps; `{folder}`, `{project}` and `{name}` stand for them."""


def _installed(packages: tuple[str, ...]) -> str | None:
    """The version of the first of them that is installed."""
    for package in packages:
        with suppress(PackageNotFoundError):
            return version(package)
    return None


def is_the_trainer(engine: str) -> bool:
    """Whether a row's `engine` is the trainer's own forward pass."""
    return engine in ENGINES and ENGINES[engine].is_the_trainer


OBJECTIVES = Registry(
    "videoopd.objectives",
    Objective,
    {
        "policy_gradient": "opd_core.update.terms.policy_gradient:OBJECTIVE",
        "unlikely_penalty": "opd_core.update.terms.unlikely_penalty:OBJECTIVE",
        "exact_reverse_kl": "opd_core.update.terms.exact_reverse_kl:OBJECTIVE",
        "exact_forward_kl": "opd_core.update.terms.exact_forward_kl:OBJECTIVE",
        "jsd": "opd_core.update.terms.jsd:OBJECTIVE",
        "student_topk_reverse_kl": "opd_core.update.terms.student_topk_reverse_kl:OBJECTIVE",
        "grpo": "opd_core.update.terms.grpo:OBJECTIVE",
        "sft": "opd_core.update.terms.sft:OBJECTIVE",
    },
)
"""Of `update.objective`."""
CURRICULA = Registry(
    "videoopd.curricula",
    Curriculum,
    {
        "tvdf": "opd_core.focus.tvdf:CURRICULUM",
        "scc": "opd_core.focus.scc:CURRICULUM",
        "timelens": "opd_core.focus.timelens:CURRICULUM",
        "uniform": "opd_core.focus.uniform:CURRICULUM",
    },
)
"""Of `focus.curriculum`."""
TEMPLATES = Registry(
    "videoopd.templates",
    PromptTemplate,
    {
        "timelens": "opd_core.templates.named:TIMELENS",
        "video-opd": "opd_core.templates.named:VIDEO_OPD",
        "json": "opd_core.templates.named:JSON",
    },
)
"""Of `prompt.template`."""
ENGINES = Registry(
    "videoopd.engines",
    Engine,
    {
        "hf": "opd_core.engines.hf.record:ENGINE",
        "vllm": "opd_core.engines.vllm.record:ENGINE",
        "vllm_server": "opd_core.engines.vllm_server.record:ENGINE",
    },
)
"""Of `rollout.engine`, `teacher.engine` and `evaluate.engine`."""
TRAINER = "hf"
"""The engine that is the trainer itself."""
TRACKERS = Registry(
    "videoopd.trackers",
    TrackerKind,
    {
        "tensorboard": "flows.tracking.tensorboard:TRACKER",
        "trackio": "flows.tracking.trackio:TRACKER",
        "wandb": "flows.tracking.wandb:TRACKER",
        "mlflow": "flows.tracking.mlflow:TRACKER",
    },
)
"""Of `tracking.to`."""


def installed_tracker(name: str) -> TrackerKind:
    """Raises `VideoOPDError` where its package is not installed."""
    kind = TRACKERS[name]
    if kind.needs and _installed(kind.needs) is None:
        package = kind.needs[0] if name in TRACKERS.foreign else f"videoopd[{name}]"
        raise VideoOPDError(
            f"the tracker {name!r} is not installed here; install it with "
            f'`pip install "{package}"`, or leave it out'
        )
    return kind
