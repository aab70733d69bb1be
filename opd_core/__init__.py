"""The algorithm of Video-OPD. Knows no Prefect, no Lance, no table and no path of a run."""

import logging
import os

# transformers draws a bar for every checkpoint that it loads, between our own lines. It reads this
# when it is first imported, in child processes too; whatever imports it here, this came before.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# torchao, which PEFT imports too, warns of each of its kernels that is for another machine, and has
# torch warn of how it registers its types. What we use of it needs neither.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
