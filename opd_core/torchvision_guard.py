"""Lets the processors of transformers import beside a CPU build of torch, in a checkout that is
used without having been installed.

An install brings `build_backend/videoopd_torchvision.py` along, which does the same for every
program of the environment and says why. Beside it, and where torchvision loads by itself, this does
nothing.
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
