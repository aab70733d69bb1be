"""What the terminal says of an optimiser step."""

from __future__ import annotations

from opd_core.types import UpdateStep


def step_line(step: UpdateStep) -> str:
    """`loss 0.628, KL 0.710, 1,216 tok/s`: the KL to the teacher (k1), where there is one.

    >>> from opd_core.types import UpdateStep
    >>> step_line(UpdateStep(0, 0.6281, 1e-6, 1.0, 515, 2, 0.7097, 0.0, 1, 1, 1, None, None, 0.5))
    'loss 0.628, KL 0.710, 1,030 tok/s'
    """
    kl = "" if step.reverse_kl is None else f", KL {step.reverse_kl:.3f}"
    speed = f", {step.tokens / step.seconds:,.0f} tok/s" if step.seconds else ""
    return f"loss {step.loss:.3f}{kl}{speed}"
