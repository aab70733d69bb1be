"""Makes `import torchvision` work beside a CPU build of torch, in any program of this environment.

The torchvision wheel on PyPI is compiled against CUDA's torch. Beside torch's CPU build its
compiled ops do not load, and `import torchvision` fails on the schema of `nms`, though the Python
transforms (all that a video processor of transformers needs) would work: and with torchvision fail
`AutoModel...` and `AutoProcessor`. Defining the two schemas first is enough.

`videoopd_torchvision.pth` beside this file imports it when Python starts; it costs nothing until
somebody imports torchvision, and where torchvision's own ops load it changes nothing.
`videoopd_build.py` puts both into site-packages. The standard library alone, because every start of
Python pays.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

TYPE_CHECKING = False  # as that of `typing`, which would cost every start of Python its import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_library: "object | None" = None


def install() -> None:
    """Once a process: from now on torchvision is loaded by `_Loader`."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds torchvision where Python would, so that looking for it imports nothing."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: "ModuleType") -> None:
        _define_what_does_not_load(module.__path__[0])
        super().exec_module(module)


def _define_what_does_not_load(package: str) -> None:
    global _library
    if _library is not None:
        return
    from pathlib import Path

    import torch

    for compiled in sorted(Path(package).glob("_C.*")):
        try:
            torch.ops.load_library(str(compiled))
            return
        except OSError:
            pass  # compiled for another build of torch
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        try:
            _library.define(schema)
        except RuntimeError:
            pass  # another program's remedy was first


install()
