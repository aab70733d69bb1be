"""What a config chooses by name, and what each of it says of itself.

Where a part is defined it says what it needs; the config's validation, the stages and the loss ask
it here and know no names. `registry.py` tells how another package adds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from opd_core.registry import Registry

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from opd_core.types import Span

TeacherNeed = Literal["nothing", "logprobs", "distribution", "vocabulary"]


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises, and what has to be there for it."""

    about: str
    """What it is, in one sentence."""
    loss: Callable[[Any, Any, Tensor | None], Tensor]
    """(`update.loss_inputs.LossInputs`, `update.chunk.Chunk`, importance weights [C] or None) ->
    the loss of each completion token, [C]. (To name the first two types here would be an import
    against the order of the rooms.) Its module imports torch where it computes, so that a config is
    read without."""
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
    reference: Callable[[Any], bool] | None = None
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
    pick: Callable[[pl.DataFrame, Any, int], pl.DataFrame]
    """(units, [focus], seed) -> the units in the columns of `focus.picked.PICKED`."""
    ranked: Callable[[Any], pl.Expr] | None = None
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


OBJECTIVES = Registry(
    "videoopd.objectives",
    Objective,
    {
        "policy_gradient": "opd_core.update.terms.policy_gradient:OBJECTIVE",
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
