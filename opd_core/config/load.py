"""Run configs: TOML in, frozen and strict records out.

An unknown key fails with the nearest right name. What there is to say in a config, and each
default, is in `sections.py`. Paths are relative to the file they stand in.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ValidationError, model_validator

from opd_core import registry
from opd_core.config.section import LATER, ChoosingSection
from opd_core.config.sections import (
    FRAMES_FOLDER,
    TRACKERS_FOLDER,
    ClusterSection,
    DataSection,
    EvaluateSection,
    FocusSection,
    FramesSection,
    MachineSection,
    ModelPath,
    ModelSection,
    PoliciesSection,
    PromptSection,
    RolloutSection,
    RoutedTeacherSection,
    RunSection,
    ScoreSection,
    StorageSection,
    TeacherSection,
    TrackingSection,
    UpdateSection,
    VideoSection,
    VLLMSection,
)
from opd_core.extensions import ENGINES, OBJECTIVES, TRAINER
from opd_core.hub.name import hub_model, model_name
from opd_core.types import VideoOPDError

Model = TypeVar("Model", bound=ModelSection)
Content = dict[str, dict[str, object]]
"""A config as JSON: section -> key -> value."""
_CHANGES_NO_NUMBER = {
    ("run", "path"),  # a copy of a run is the same
    *(("frames", key) for key in ("enabled", "path", "max_gib")),
    *(("vllm_server", key) for key in ("address", "together", "seconds")),
    ("machine", "check_memory"),
    ("update", "save_minutes"),  # it goes on as if it had not been killed
    "storage",  # how often rows are appended
    "policies",  # whose weights are kept
    "cluster",  # how many compute it, and where
    "tracking",  # who is told of it
}
"""What is not in the hash of a config: keys, and whole sections."""


class Config(ChoosingSection):
    parts = ENGINES
    run: RunSection
    data: DataSection
    student: ModelSection
    teachers: Annotated[tuple[RoutedTeacherSection, ...], LATER] = ()
    teacher: TeacherSection
    """Of several the first; what computes with a teacher is given one of `of_each_teacher`."""
    prompt: PromptSection = PromptSection()
    video: VideoSection = VideoSection()
    frames: FramesSection = FramesSection()
    rollout: RolloutSection = RolloutSection()
    score: ScoreSection = ScoreSection()
    focus: FocusSection = FocusSection()
    update: UpdateSection = UpdateSection()
    evaluate: EvaluateSection = EvaluateSection()
    policies: PoliciesSection = PoliciesSection()
    vllm: VLLMSection = VLLMSection()
    storage: StorageSection = StorageSection()
    machine: MachineSection = MachineSection()
    cluster: Annotated[ClusterSection | None, LATER] = None
    tracking: Annotated[TrackingSection, LATER] = TrackingSection()

    def chosen(self) -> Sequence[str]:
        asked = (teacher.engine for teacher in self.all_teachers)
        return [self.rollout.engine, *asked, self.evaluate.engine]

    @property
    def all_teachers(self) -> tuple[TeacherSection, ...]:
        return self.teachers or (self.teacher,)

    def of_each_teacher(self) -> tuple[Config, ...]:
        """The config with each of its teachers as the only one, in order."""
        return tuple(
            self.model_copy(update={"teacher": teacher.alone, "teachers": ()})
            for teacher in self.teachers
        ) or (self,)

    def with_teacher(self, teacher_id: str) -> Config:
        """The config with the one as its only teacher that rows call so. Raises `VideoOPDError`
        where none of several has that name."""
        each = self.of_each_teacher()
        named = [c for c in each if model_name(c.teacher.path) == teacher_id]
        if not named and self.teachers:
            raise VideoOPDError(
                f"none of [[teachers]] is {teacher_id}, which has scored; put its entry back"
            )
        return (named or each)[0]

    def model_paths(self) -> dict[str, Path]:
        """`student`, `teacher` or `teachers.NAME` -> the folder or name of that model."""
        several = {f"teachers.{teacher.name}": teacher.path for teacher in self.teachers}
        return {"student": self.student.path, **(several or {"teacher": self.teacher.path})}

    def with_model_paths(self, paths: Mapping[str, Path]) -> Self:
        """The config with other paths of some of `model_paths`."""

        def changed(section: Model, role: str) -> Model:
            return section.model_copy(update={"path": paths.get(role, section.path)})

        teachers = tuple(changed(t, f"teachers.{t.name}") for t in self.teachers)
        first = teachers[0].alone if teachers else changed(self.teacher, "teacher")
        student = changed(self.student, "student")
        return self.model_copy(update={"student": student, "teachers": teachers, "teacher": first})

    def not_written(self) -> set[str]:
        return super().not_written() | ({"teacher"} if self.teachers else set())

    @model_validator(mode="before")
    @classmethod
    def _the_first_of_several(cls, data: Any) -> Any:
        listed = data.get("teachers") if isinstance(data, dict) else None
        if not listed or not isinstance(listed, list | tuple):
            return data
        if "teacher" in data:
            raise ValueError(
                "a config has [teacher] or [[teachers]], not both; make [teacher] the last of "
                "[[teachers]], without `takes`"
            )
        first = listed[0]
        names = TeacherSection.model_fields
        if isinstance(first, dict):
            first = {k: v for k, v in first.items() if k in names}
        return data | {"teacher": first}

    @model_validator(mode="after")
    def _teachers_are_told_apart(self) -> Self:
        names = [teacher.name for teacher in self.teachers]
        models = [model_name(teacher.path) for teacher in self.teachers]
        for what, values in (("name", names), ("model", models)):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(
                    f"two of [[teachers]] have the {what} {twice[0]!r}, by which they are told "
                    "apart; rename one"
                )
        elsewhere = [t for t in self.teachers if ENGINES[t.engine].identity is not None]
        if len(elsewhere) > 1:
            first, second = elsewhere[:2]
            raise ValueError(
                f"teachers.{first.name} and teachers.{second.name} are both behind one address, "
                f"and [{second.engine}] names one model; set teachers.{second.name}.engine = 'hf'"
            )
        return self

    @property
    def objective_weights(self) -> dict[str, float]:
        """Objective -> its weight in the loss."""
        objective = self.update.objective
        return {objective: 1.0} if isinstance(objective, str) else dict(objective)

    @property
    def objective_text(self) -> str:
        """The objective as the table `updates` names it: `policy_gradient`, or
        `1 policy_gradient + 0.5 grpo`."""
        objective = self.update.objective
        if isinstance(objective, str):
            return objective
        return " + ".join(f"{weight:g} {name}" for name, weight in sorted(objective.items()))

    @property
    def needs_teacher_scores(self) -> bool:
        return any(OBJECTIVES[name].needs_teacher for name in self.objective_weights)

    @property
    def needs_teacher_distribution(self) -> bool:
        return any(OBJECTIVES[name].needs_distribution for name in self.objective_weights)

    @model_validator(mode="after")
    def _objective_has_its_inputs(self) -> Self:
        for name in self.objective_weights:
            self._has_inputs_of(name)
        if self.rollout.source == "truth" and self.rollout.rollouts_per_example > 1:
            raise ValueError(
                "rollout.source = 'truth' gives one answer to an example; set "
                "rollout.rollouts_per_example = 1"
            )
        if self.rollout.source == "truth":
            self._answers_are_readable()
        for teacher in self.all_teachers:
            self._does_what_is_asked(teacher)
        students = {"evaluate.engine": self.evaluate.engine}
        if self.rollout.source != "teacher":
            students["rollout.engine"] = self.rollout.engine
        for key, engine in students.items():
            if ENGINES[engine].identity is not None:
                raise ValueError(
                    f"{key} = {engine!r} is for a teacher: a server has no policy of this run; set "
                    f"{key} = 'hf'"
                )
        return self

    def _does_what_is_asked(self, teacher: TeacherSection) -> None:
        if self.rollout.source == "teacher" and self.rollout.engine != teacher.engine:
            raise ValueError(
                "rollout.source = 'teacher' samples with the teacher's engine; set rollout.engine "
                f"= {teacher.engine!r}"
            )
        scorer = ENGINES[teacher.engine]
        needs_scores = self.needs_teacher_scores or self.focus.disagreement == "reverse_kl"
        if needs_scores and scorer.scorer is None:
            raise ValueError(
                f"teacher.engine = {teacher.engine!r} cannot score answers; set "
                "teacher.engine = 'hf'"
            )
        if teacher.quantise not in ("none", *scorer.quantises):
            raise ValueError(
                f"teacher.quantise = {teacher.quantise!r} is not done by teacher.engine = "
                f"{teacher.engine!r}; set teacher.engine = 'hf', or teacher.quantise = 'none'"
            )
        shards = 1 if self.cluster is None else self.cluster.teacher_shards
        if shards > 1 and (teacher.engine, teacher.quantise) != (TRAINER, "none"):
            raise ValueError(
                "cluster.teacher_shards is of teacher.engine = 'hf' and teacher.quantise = 'none'; "
                "set them so, or cluster.teacher_shards = 1"
            )
        for name in ("teacher_entropy", "hidden_states"):
            if getattr(self.score, name) and not scorer.whole_distribution:
                raise ValueError(
                    f"score.{name} needs the teacher's own forward pass, which "
                    f"{teacher.engine} does not give; set teacher.engine = 'hf', or "
                    f"score.{name} = false"
                )

    @model_validator(mode="after")
    def _weights_are_the_samplers(self) -> Self:
        if self.update.weights == "bfloat16" and self.student.dtype != "bfloat16":
            raise ValueError(
                "update.weights = 'bfloat16' trains weights that the sampler would read in "
                f"student.dtype = {self.student.dtype!r}; set student.dtype = 'bfloat16'"
            )
        if self.update.offload and self.student.dtype == "float16":
            raise ValueError(
                "update.offload = true keeps gradients in student.dtype, and float16 has no "
                "numbers as small as they are; set student.dtype = 'bfloat16'"
            )
        return self

    @model_validator(mode="after")
    def _workers_have_their_cards(self) -> Self:
        cluster, device = self.cluster, self.machine.device
        if cluster is None or device == "cpu":
            return self
        if ":" in device:
            raise ValueError(
                f"machine.device = {device!r} is one card, and [cluster] gives each worker its "
                "own; set machine.device = 'auto'"
            )
        cards = self.vllm.tensor_parallel_size
        if "vllm" in self.chosen() and cards > cluster.devices_per_worker:
            raise ValueError(
                f"vllm.tensor_parallel_size = {cards} needs as many cards of a worker; set "
                f"cluster.devices_per_worker = {cards}"
            )
        return self

    def _has_inputs_of(self, name: str) -> None:
        objective = OBJECTIVES[name]
        exact = self.update.teacher_distribution == "hidden_states"
        if objective.on_policy_only and self.rollout.source != "student":
            raise ValueError(
                f"update.objective = {name!r} is a gradient on the student's own answers only; "
                "set rollout.source = 'student', or another objective"
            )
        if objective.of_teacher == "vocabulary" and not exact:
            raise ValueError(
                f"update.objective = {name!r} needs the teacher's log-prob of any token; set "
                "update.teacher_distribution = 'hidden_states' and score.hidden_states = true"
            )
        if objective.needs_distribution and exact and not self.score.hidden_states:
            raise ValueError(
                "update.teacher_distribution = 'hidden_states' needs score.hidden_states = true"
            )
        if objective.needs_distribution and not exact and self.score.teacher_topk == 0:
            raise ValueError(
                f"update.objective = {name!r} needs the teacher's top-k; "
                "set score.teacher_topk = 32"
            )
        if objective.of_teacher == "logprobs" and "int4" in {t.quantise for t in self.all_teachers}:
            raise ValueError(
                f"update.objective = {name!r} takes the teacher's log-prob of the sampled token as "
                "it is, of which 4 bits a weight leave some tokens far off; set teacher.quantise = "
                "'fp8', or update.objective = 'exact_reverse_kl'"
            )
        if objective.needs_groups and self.rollout.rollouts_per_example < 2:
            raise ValueError(
                f"update.objective = {name!r} compares answers to one prompt; set "
                "rollout.rollouts_per_example = 8"
            )
        if objective.needs_groups and self.focus.unit != "example":
            raise ValueError(
                f"update.objective = {name!r} needs all answers to an example; set focus.unit = "
                "'example'"
            )

    @model_validator(mode="after")
    def _importance_weights_fit_the_objective(self) -> Self:
        level = self.update.tis
        if level in ("auto", "off"):
            return self
        for name in self.objective_weights:
            fitting = OBJECTIVES[name].importance_levels
            if not fitting or level in fitting:
                continue
            why = (
                "is exact at its state, whatever token was sampled there: its own ratio adds noise"
                if level == "token"
                else "is of the sampled token, whose own ratio 'prefix' leaves out"
            )
            alone = len(self.objective_weights) == 1
            fix = f"{fitting[0]!r}" if alone else "'auto', which gives each part what fits it"
            raise ValueError(
                f"update.tis = {level!r} does not fit update.objective = {name!r}, which {why}; "
                f"set update.tis = {fix}"
            )
        return self

    def _answers_are_readable(self) -> None:
        from opd_core.templates.own_prompt import (  # compiles the readers' patterns
            template_of,
            unreadable,
        )

        if text := unreadable(template_of(self.prompt)):
            raise ValueError(
                "rollout.source = 'truth' trains on answers that the prompt's own reader must "
                f"read, and it does not ({text}); set prompt.answer, for example "
                '"{start:.1f} - {end:.1f}"'
            )

    @property
    def frames_path(self) -> Path | None:
        """Folder of the frame store; None where there is to be none."""
        if not self.frames.enabled:
            return None
        return self.frames.path or self.run.path.parent / FRAMES_FOLDER

    @property
    def trackers_path(self) -> Path:
        """The folder in which each tracker has one."""
        return self.tracking.folder or self.run.path.parent / TRACKERS_FOLDER

    def to_json(self) -> str:
        """Canonical text: the same config gives the same text on any machine."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1)

    @property
    def hash(self) -> str:
        """16 hex digits over what changes a number: `config_hash` of `to_json`."""
        return config_hash(self.model_dump(mode="json"))

    def what_counts(self) -> Content:
        """Section -> key -> value, as they are hashed."""
        return _what_counts(self.model_dump(mode="json"))


def config_hash(content: Content) -> str:
    """The hash of a stored config as it was written: a key that has come since is not in it."""
    counts = json.dumps(_what_counts(content), sort_keys=True)
    return hashlib.sha256(counts.encode()).hexdigest()[:16]


def _what_counts(content: Content) -> Content:
    return {
        section: {k: v for k, v in values.items() if (section, k) not in _CHANGES_NO_NUMBER}
        if isinstance(values, dict)
        else values
        for section, values in content.items()
        if section not in _CHANGES_NO_NUMBER
    }


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML config. `overrides` are `section.key=value` with the value in TOML; a path in
    them is relative to the file's folder, as those in the file (`paths.py`).

    Raises `VideoOPDError` with one sentence: the file, the key, and the fix.
    """
    path = Path(path)
    data = read_toml(path, "config", "configs/tiny.toml")
    for override in overrides:
        _apply_override(data, override)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise VideoOPDError(f"{path}: {first_problem(error, Config)}") from None
    return _with_absolute_paths(config, path.resolve().parent)


def read_toml(path: Path, kind: str, example: str) -> dict[str, Any]:
    """What is in a TOML file. Raises `VideoOPDError`; `kind` and `example` are for its sentence."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise VideoOPDError(
            f"there is no {kind} at {path}; give the path of a TOML file such as {example}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise VideoOPDError(f"{path} cannot be read as TOML: {error}; correct the file") from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    (*sections, key), value, _ = parse_override(override)
    for section in sections:
        data = _inside(data, section)
        if not isinstance(data, dict | list):
            raise VideoOPDError(f"--set {override!r}: {section!r} is no section; see configs/")
    if not isinstance(data, dict):
        raise VideoOPDError(f"--set {override!r} names no one of a list; write teachers.NAME.key")
    data[key] = value


def _inside(data: Any, section: str) -> Any:
    """A section of `data`; of a list of them the one of that name."""
    if isinstance(data, list):
        return next((d for d in data if isinstance(d, dict) and d.get("name") == section), None)
    return data.setdefault(section, {})


def parse_override(override: str) -> tuple[list[str], object, str]:
    """`section.key=value` as its names, the value by TOML (text where it is none), and its text."""
    name, separator, text = override.partition("=")
    names = [part.strip() for part in name.split(".")]
    if not separator or len(names) < 2 or not all(names):
        raise VideoOPDError(
            f"--set {override!r} is not section.key=value; "
            "write for example --set update.learning_rate=1e-5"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return names, value, text.strip()


def first_problem(error: ValidationError, root: type[BaseModel]) -> str:
    """The first thing that is wrong with what should have become a `root`, and the fix."""
    # A misspelt key may be a missing one too; the nearest right name says more.
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            names = _names_at(root, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}"
            return f"unknown key {location!r}; {hint}"
        case "missing":
            return f"the key {location!r} is missing; add it"
        case registry.UNKNOWN:
            return f"{location} {problem['msg']}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case _:
            return f"{location} = {problem['input']!r} is not valid: {problem['msg']}; correct it"


def _names_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are known there."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            of_a_part = issubclass(model, ChoosingSection) and model.settings_of(str(part))
            # Else the name of an entry, such as an arm of a study: the model is known already.
            model = of_a_part or model
            continue
        annotation: Any = field.annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return model.known_keys() if issubclass(model, ChoosingSection) else list(model.model_fields)


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    return config.model_copy(update=_absolute(config, folder))


def _absolute(section: BaseModel, folder: Path) -> dict[str, object]:
    """The values of a section that hold a path, in the sections inside it too; made absolute."""
    absolute: dict[str, object] = {}
    for name, value in section:
        if isinstance(value, Path):
            kind = type(section).model_fields[name].annotation
            absolute[name] = absolute_path(value, folder, kind is ModelPath)
        elif isinstance(value, BaseModel) and (inside := _absolute(value, folder)):
            absolute[name] = value.model_copy(update=inside)
        elif isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
            absolute[name] = tuple(one.model_copy(update=_absolute(one, folder)) for one in value)
    return absolute


def absolute_path(path: Path, folder: Path, may_be_a_name: bool) -> Path:
    """A path of a config whose relative ones begin in `folder`. A model's name on the hub stays as
    it is, unless there is a folder of that name.

    Raises `VideoOPDError` for an address such as s3://bucket/run, which would be a folder "s3:".
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        address = str(path).replace(":/", "://", 1)  # a Path has joined the two slashes
        raise VideoOPDError(
            f"{address} is an address, and a path of a config is a file or folder of this machine; "
            "mount it and give the folder (only the tables of a run can be in an object store, by "
            "storage.tables)"
        )
    absolute = (folder / path.expanduser()).resolve()
    is_name = may_be_a_name and not absolute.is_dir() and hub_model(path) is not None
    return path if is_name else absolute
