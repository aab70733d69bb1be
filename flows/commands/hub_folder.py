"""`videoopd export RUN --to hub-folder`: a policy as a folder that can be pushed to the hub.

Weights, configs, tokenizer and processor as `from_pretrained` reads them, and a model card. An
adapter is merged into its base first: it names the base by a path of this machine, which means
nothing elsewhere. Left behind is what the run alone needs: its manifest, an older one's optimiser.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.commands.model_card import card
from opd_core.adapter_folder import is_adapter
from opd_core.types import VideoOPDError
from storage.files import new_folder
from storage.runs.policies import MANIFEST_FILE
from storage.runs.run import Run
from storage.runs.trainer_folders import OLDER_FILE

_OF_THE_RUN = (MANIFEST_FILE, OLDER_FILE)


def write_hub_folder(run: Run, out: Path) -> int:
    """Write the newest policy, of RUN@k policy k, into the new folder `out`; returns its version.

    Raises `VideoOPDError` before the first round, and where `out` holds something.
    """
    version = run.round if run.round is not None else run.current_policy().version
    if version == 0:
        raise VideoOPDError(
            f"run {run.path} has made no policy yet, and its base is {run.policy(0).path}; run a "
            "round first"
        )
    policy = run.policy(version)
    with new_folder(out) as folder:
        if is_adapter(policy.path):
            from opd_core.model.published import merge_adapter

            merge_adapter(policy.path, folder, "float32")
        else:
            for file in sorted(p for p in policy.path.iterdir() if p.is_file()):
                shutil.copyfile(file, folder / file.name)
        for name in _OF_THE_RUN:
            (folder / name).unlink(missing_ok=True)
        (folder / "README.md").write_text(card(run, version))
    return version
