"""The formats by name: what `videoopd import FORMAT` knows.

Four names are one reader: what the data sets' own words promise, and any mixture of them.
"""

from __future__ import annotations

from opd_core.annotations.formats.found import Format
from opd_core.registry import Registry

_HERE = "opd_core.annotations.formats"
FORMATS = Registry(
    "videoopd.formats",
    Format,
    {
        "timelens-100k": f"{_HERE}.rows:ROWS",
        "timelens-bench": f"{_HERE}.by_video:BY_VIDEO",
        "charades-sta": f"{_HERE}.charades:CHARADES_STA",
        "activitynet": f"{_HERE}.by_video:BY_VIDEO",
        "qvhighlights": f"{_HERE}.rows:ROWS",
        "video-opd": f"{_HERE}.rows:ROWS",
        "csv": f"{_HERE}.csv_table:CSV",
        "jsonl": f"{_HERE}.rows:ROWS",
    },
)
