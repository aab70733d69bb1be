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
from importlib.machinery import PathFinder, SourceFileLoader

_library = None


def install():
    """Once a process: from now on torchvision is loaded by `_Loader`."""
    if not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds torchvision where Python would, so that looking for it imports nothing."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module):
        _define_what_does_not_load(module.__path__[0])
        super().exec_module(module)


def _define_what_does_not_load(package):
    global _library
    if _library is not None:
        return
    import os

    import torch

    for name in sorted(os.listdir(package)):
        if name.startswith("_C.") and name.endswith((".so", ".pyd", ".dylib")):
            try:
                torch.ops.load_library(os.path.join(package, name))
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
            pass  # some other program's remedy was first


install()
