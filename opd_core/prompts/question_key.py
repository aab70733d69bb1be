"""How a model was asked, as one hash: answers of one hash are comparable, and one can be reused.

Beside the model's weights and the example, an answer depends on the words around the sentence, the
frames, the processor, the engine with its precision (and with its settings, where it is another
package's), how a teacher's weights are quantised, and how many tokens it may have. Versions of
libraries are left out: they change an answer by rounding, which is within what sampling does.
"""

from __future__ import annotations

import hashlib
import json

from opd_core.config.load import Config
from opd_core.model.agreement import served_dtype
from opd_core.templates.own_prompt import template_of
from opd_core.video.clip import SPEC_VERSION

PREDICTION_SEEDS = "make_seed(0, predict <teacher_hash>, 0, example_id, index)"
"""The rule of `rollout.predict`: not of the run's seed, so that any run asks the same."""


def prediction_question(config: Config, processor: str) -> str:
    """The key of the teacher's own k answers; `processor`: the hash of the teacher's processor."""
    quantise = config.teacher.quantise
    return _hash(
        config,
        config.teacher.engine,
        config.teacher.dtype,
        processor,
        max_new_tokens=config.rollout.max_new_tokens,
        answers=config.teacher.predictions,
        seeds=PREDICTION_SEEDS,
        **({} if quantise == "none" else {"quantised": quantise}),
    )


def evaluation_question(config: Config, processor: str) -> str:
    """The key of a greedy answer on the eval split; `processor`: the hash of the model's own."""
    return _hash(
        config,
        config.evaluate.engine,
        config.student.dtype,
        processor,
        max_new_tokens=config.evaluate.max_new_tokens,
        answers="greedy",
    )


def _hash(config: Config, engine: str, dtype: str, processor: str, **rest: object) -> str:
    """16 hex digits; of [video], only what changes pixels. The number rises when the model is asked
    otherwise under the same settings: 2, sentences without their full stops, and positions of
    Qwen2.5-VL."""
    video, template = config.video, template_of(config.prompt)
    content = {
        "question 2": template.text,
        "parsed as": template.reader,
        "frames": [
            SPEC_VERSION,
            video.fps,
            video.max_frames,
            video.max_video_tokens,
            video.max_frame_tokens,
            video.decoder,
        ],
        "codec": config.frames.codec,
        "engine": engine,
        "dtype": served_dtype(config, engine, dtype),
        "processor": processor,
        **rest,
    }
    if (settings := config.foreign_settings(engine)) is not None:
        content["engine settings"] = settings
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
