"""Lets the processors of transformers import beside a CPU build of torch.

The torchvision wheel on PyPI is compiled against CUDA's torch. Beside torch's CPU build its
compiled ops do not load, and `import torchvision` fails on the schema of `nms`, though the Python
transforms (all that a video processor needs) would work. Defining the two schemas is enough.
Where torchvision loads, this does nothing.
"""

from __future__ import annotations

from typing import Any

_fragment: Any = None


def install() -> None:
    """Make `import torchvision` work; call before the first import of a transformers processor."""
    global _fragment
    if _fragment is not None:
        return
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        _fragment = False
        return
    _forget("torchvision")
    _fragment = torch.library.Library("torchvision", "FRAGMENT")
    _fragment.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _fragment.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401


def _forget(package: str) -> None:
    """A failed import leaves half-made submodules behind; drop them so that it runs again."""
    import sys

    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        del sys.modules[name]
