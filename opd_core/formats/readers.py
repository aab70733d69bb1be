"""The formats by name: what `videoopd import FORMAT` knows."""

from __future__ import annotations

from opd_core.formats.by_line import read_plain_jsonl, read_qvhighlights, read_timelens_100k
from opd_core.formats.by_video import read_activitynet, read_timelens_bench
from opd_core.formats.chat import read_chat_rows
from opd_core.formats.found import Reader
from opd_core.formats.text import read_charades_sta, read_csv

READERS: dict[str, Reader] = {
    "timelens-100k": read_timelens_100k,
    "timelens-bench": read_timelens_bench,
    "charades-sta": read_charades_sta,
    "activitynet": read_activitynet,
    "qvhighlights": read_qvhighlights,
    "video-opd": read_chat_rows,
    "csv": read_csv,
    "jsonl": read_plain_jsonl,
}
