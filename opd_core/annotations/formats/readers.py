"""The formats by name: what `videoopd import FORMAT` knows.

Four names are one reader: what the data sets' own words promise, and any mixture of them.
"""

from __future__ import annotations

from opd_core.annotations.formats.by_video import read_by_video
from opd_core.annotations.formats.charades import read_charades_sta
from opd_core.annotations.formats.csv_table import read_csv
from opd_core.annotations.formats.found import Reader
from opd_core.annotations.formats.rows import read_rows

READERS: dict[str, Reader] = {
    "timelens-100k": read_rows,
    "timelens-bench": read_by_video,
    "charades-sta": read_charades_sta,
    "activitynet": read_by_video,
    "qvhighlights": read_rows,
    "video-opd": read_rows,
    "csv": read_csv,
    "jsonl": read_rows,
}
