"""How answers are got, whoever asks: prompts, an engine, the gate, and a record an answer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeAlias, TypeVar

from opd_core import faults
from opd_core.cluster.work import Compute, Examples, Feed, Piece
from opd_core.config.load import Config
from opd_core.engines.base import (
    OpenedEngine,
    Refused,
    Request,
    Sample,
    SamplingParams,
    WorksElsewhere,
)
from opd_core.engines.gate import Gate, gate_of, mismatches
from opd_core.engines.in_turn import in_turn
from opd_core.engines.whole_answers import sampling
from opd_core.extensions import Quantise
from opd_core.prompts.batches import EncodedBatch, EncodedExample, ExampleEncoder
from opd_core.types import Batch, GroundingExample, Policy, QuarantinedItem

Record = TypeVar("Record")
Answer: TypeAlias = Sequence[Sample] | Refused


@dataclass(frozen=True, slots=True)
class Asked:
    """Who was asked."""

    encoder: ExampleEncoder
    engine: OpenedEngine
    mismatches: dict[tuple[str, int], float]
    """(example id, sample index) -> what the gate measured, of the rows that keep it."""
    checked: list[str]
    """Examples with which the engine was compared."""


@dataclass(frozen=True)
class Answering(ABC, Generic[Record]):
    """A `StageWork`: the answers of one policy."""

    config: Config
    policy: Policy

    stage: ClassVar[str]

    @property
    @abstractmethod
    def params(self) -> SamplingParams: ...

    @property
    @abstractmethod
    def engine(self) -> str: ...

    @property
    def dtype(self) -> str:
        return self.config.student.dtype

    @property
    def compared(self) -> bool:
        """Whether an example is also scored by the trainer's own forward."""
        return True

    @property
    def quantise(self) -> Quantise:
        return "none"

    @abstractmethod
    def seeds(self, example: GroundingExample) -> tuple[int, ...]:
        """One an answer."""

    @abstractmethod
    def record(
        self, item: EncodedExample, index: int, sample: Sample, asked: Asked, seconds: float
    ) -> Record:
        """The row of one answer; `seconds` is its share of the batch's time."""

    @contextmanager
    def opened(self) -> Iterator[Compute[Record]]:
        """Encoder, engine and gate."""
        from opd_core.engines.choice import opened_engine, room_for

        config, folder = self.config, self.policy.path
        encoder = ExampleEncoder(config, folder)
        gate = gate_of(encoder, self.params.max_new_tokens)
        with opened_engine(
            config, self.engine, folder, self.dtype, encoder, quantise=self.quantise
        ) as engine:
            room = room_for(config, self.engine, encoder, self.params.max_new_tokens)
            asked = Asked(encoder, engine, {}, [])

            def compute(feed: Feed) -> Iterator[Batch[Record]]:
                examples = Examples(feed)
                batches = encoder.encode_batches(
                    examples,
                    self.stage,
                    self.policy.version,
                    asks=True,
                    room=room,
                    ahead=not isinstance(engine, WorksElsewhere),
                )
                ended = 0.0
                for turn in in_turn(engine, batches, lambda encoded: self._ask(engine, encoded)):
                    said = turn.answers()
                    # Asked before the last batch was answered, it has waited for that.
                    began, ended = max(turn.since, ended), time.perf_counter()
                    piece = examples.taken.popleft()
                    yield self._batch(turn.encoded, said, ended - began, piece, asked, gate)

            yield compute

    def _ask(
        self, engine: OpenedEngine, encoded: EncodedBatch
    ) -> Callable[[], Mapping[Hashable, Answer]]:
        requests = [
            [Request(i.example.example_id, i.prompt, self.seeds(i.example)) for i in video]
            for video in encoded.videos
        ]
        return sampling(engine, requests, self.params)

    def _batch(
        self,
        encoded: EncodedBatch,
        said: Mapping[Hashable, Answer],
        seconds: float,
        piece: Piece,
        asked: Asked,
        gate: Gate,
    ) -> Batch[Record]:
        engine = asked.engine
        items = [item for video in encoded.videos for item in video]
        faulty = gate.check(engine.name, items, said)
        answers = {k: a for k, a in said.items() if not isinstance(a, Refused)}
        fit = [i for i in items if i.example.example_id not in faulty]
        if self.compared and fit and (piece.is_first or not asked.checked):
            self._compare(fit, answers, piece, asked)
        quarantined = [
            *encoded.quarantined,
            *(
                self._quarantine(i, f"{engine.name}: {faulty[i.example.example_id]}")
                for i in items
                if i.example.example_id in faulty
            ),
        ]
        count = max(sum(len(a) for a in answers.values()), 1)
        records = [
            self.record(item, index, sample, asked, seconds / count)
            for item in fit
            if item.example.example_id in piece.needed
            for index, sample in enumerate(answers[item.example.example_id])
        ]
        return Batch(tuple(records), tuple(quarantined), len(piece.needed))

    def _compare(
        self,
        fit: Sequence[EncodedExample],
        answers: Mapping[Hashable, Sequence[Sample]],
        piece: Piece,
        asked: Asked,
    ) -> None:
        """Each engine is held against the trainer on the first that it answers. Which rows say so
        must not depend on how many there are: of workers, those of the plan's first piece."""
        folder, dtype, encoder = self.policy.path, self.dtype, asked.encoder
        measured = mismatches(
            self.config, folder, dtype, encoder, asked.engine, fit[0], answers, fit
        )
        asked.checked.append(fit[0].example.example_id)
        if piece.is_first or self.config.cluster is None:
            asked.mismatches.update(measured)

    def _quarantine(self, item: EncodedExample, reason: str) -> QuarantinedItem:
        return QuarantinedItem(
            item.example.example_id,
            self.stage,
            item.example.video_path,
            reason,
            self.policy.version,
            faults.ENGINE,
        )
