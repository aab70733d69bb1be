"""The algorithm of Video-OPD. Knows no Prefect, no Lance, no table and no path of a run."""

import os

# transformers draws a bar for every checkpoint that it loads, between our own lines. It reads this
# when it is first imported, in child processes too; whatever imports it here, this came before.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
