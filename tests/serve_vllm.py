"""vLLM's own server, as `vllm serve` starts it, for the tests: `tests/serve_vllm.py --model ...`.

An interpreter of its own, with torchvision's guard (a checkout need not be installed) and without
the subprocess in which vLLM looks at a model, which would miss it. The engine's process begins with
this file again.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from opd_core import torchvision_guard

torchvision_guard.install()

if __name__ == "__main__":
    from vllm import ModelRegistry

    name = "Qwen3VLForConditionalGeneration"
    ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
