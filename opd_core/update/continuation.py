"""May a policy be trained on under the settings of a config, and does its optimiser go on?

Settings may change between rounds. Most take effect and that is all: each row names the config it
was made with. Four kinds do not, and are compared before a round samples anything:

1. What makes the optimiser's state that of another training (which weights are trained, its decay
   rates, what it is kept in): it begins anew, with its warm-up, and the row in `updates` says why.
2. What a policy already is (full weights or a LoRA adapter; the adapter's rank, alpha and
   modules): refused, because the round would not train what the config says. A new run can start
   from the policy, an adapter merged into its base.
3. LoRA modules that no layer has: refused.
4. What the ranks of `[cluster]` cannot train with: refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from opd_core.adapter_folder import ADAPTER_CONFIG, base_folder, is_adapter
from opd_core.config.load import Config
from opd_core.config.sections import LoraSection, UpdateSection
from opd_core.model.architectures import architecture_in
from opd_core.model.weight_files import stored_tensors
from opd_core.types import VideoOPDError

OPTIMIZER_FILE = "optimizer.pt"


def continuation(
    config: Config,
    policy: Path,
    version: int,
    earlier: Mapping[str, object] | None,
    trainer: Path | None,
) -> str | None:
    """Why the optimiser begins anew after policy `version`, whose folder is `policy`; None: it goes
    on, or there was none, as for the base.

    `trainer` is the folder of what its training left, None where there is none. `earlier` is the
    `update` section, as JSON, of the config that the policy was made with, None for the base.
    Raises `VideoOPDError` where the policy cannot be trained under `config`.
    """
    if config.cluster is not None:
        _refuse_unsharded(config)
    lora = config.update.lora
    if lora is None and is_adapter(policy):
        raise VideoOPDError(
            f"policy {version} in {policy} is a LoRA adapter and the config has no [update.lora]; "
            f"put the section back, or {_start_anew(version)}"
        )
    if lora is not None:
        if is_adapter(policy):
            _refuse_another_adapter(policy, version, lora)
        elif version > 0:
            raise VideoOPDError(
                f"policy {version} in {policy} has full weights and the config has [update.lora]; "
                "remove the section, or start a new run with student.path = that folder"
            )
        else:
            _refuse_unknown_modules(policy, lora)
    if version == 0:
        return None
    changed = _changed(config.update, earlier or {})
    if changed is not None:
        return changed
    if trainer is None or not (trainer / OPTIMIZER_FILE).is_file():
        return f"policy {version} has no state of an optimiser: it is kept of the newest one only"
    return None


def _refuse_unsharded(config: Config) -> None:
    """Raise `VideoOPDError` for settings of `[update]` that several ranks cannot train with."""
    update = config.update
    for is_set, setting, fix in (
        (update.offload, "update.offload = true", "update.offload = false"),
        (update.weights != "float32", "update.weights = 'bfloat16'", "update.weights = 'float32'"),
        (update.optimizer != "adamw", f"update.optimizer = {update.optimizer!r}",
         "update.optimizer = 'adamw'"),
    ):  # fmt: skip
        if is_set:
            raise VideoOPDError(
                f"{setting} is of one process, and [cluster] trains with several, each of which "
                f"holds a part of weights and moments anyway; set {fix}, or remove [cluster]"
            )


def _changed(now: UpdateSection, earlier: Mapping[str, object]) -> str | None:
    names = ["adam_betas", "optimizer", "weights", "offload"]
    content = now.model_dump(mode="json")
    for name in names if now.lora else ["freeze_vision", *names]:
        value, before = (json_of.get(name, _default(name)) for json_of in (content, earlier))
        if before != value:
            was, is_now = (json.dumps(v) for v in (before, value))
            return f"update.{name} was {was} in the round before and is {is_now}"
    return None


def _default(name: str) -> object:
    """What a setting was where the stored config does not name it."""
    return UpdateSection.model_fields[name].default


def _refuse_another_adapter(policy: Path, version: int, lora: LoraSection) -> None:
    described = json.loads((policy / ADAPTER_CONFIG).read_text())
    names = [name for name in stored_tensors(policy) if ".lora_" in name]
    wanted_modules = lora.target_modules or architecture_in(base_folder(policy)).lora_modules
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names})
    for key, trained, wanted in (
        ("rank", described.get("r"), lora.rank),
        ("alpha", described.get("lora_alpha"), lora.alpha),
        ("target_modules", modules, sorted(set(wanted_modules))),
    ):
        if trained != wanted:
            raise VideoOPDError(
                f"policy {version} in {policy} is a LoRA adapter with {key} = {trained}, and "
                f"update.lora.{key} is {wanted}; put that back, or {_start_anew(version)}"
            )


def _start_anew(version: int) -> str:
    policy = "the model" if version == 0 else f"`videoopd export RUN@{version} --to hub-folder`"
    made = "merged into its base" if version == 0 else "which merges it into its base"
    return f"start a new run with student.path = the folder of {policy}, {made}"


def _refuse_unknown_modules(base: Path, lora: LoraSection) -> None:
    """Refuses `target_modules` that name no matrix of the base, or one of the vision tower or the
    head, which are never adapted."""
    family = architecture_in(base)
    known = {
        name.removesuffix(".weight").rsplit(".", 1)[-1]
        for name, stored in stored_tensors(base).items()
        if ".layers." in name and len(stored.shape) == 2 and family.is_linear(name)
    }
    family.refuse_lora_of(set(lora.target_modules or family.lora_modules) - known, known)
