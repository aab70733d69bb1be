"""Turns `prefect deployment run videoopd/...` without a server into one sentence with the fix.

Prefect itself prints a traceback of its HTTP client. This hook runs when Prefect is imported in the
project folder (prefect.toml enables it, pyproject.toml registers it), and does nothing for any
other command. It has to be quick and to import nothing heavy.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

from prefect.plugins import HookContext, register_hook


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Exit with code 2 before a deployment is run where no server answers."""
    if not _runs_a_deployment(sys.orig_argv):
        return
    from flows.server.prefect_settings import answers

    url = ctx.api_url
    if url and urlsplit(url).scheme == "https":
        return  # Prefect Cloud or a guarded server: its own messages are good
    if not url or not answers(url):
        where = f" at {url}" if url else ""
        print(f"videoopd: no Prefect server answers{where}; start one with `make up`, then run "
              "this again", file=sys.stderr)  # fmt: skip
        raise SystemExit(2)


def _runs_a_deployment(argv: list[str]) -> bool:
    """Whether it is `prefect deployment run ...`, as a script or as `python -m prefect`."""
    words = [Path(word).name for word in argv if not word.startswith("-")]
    start = words.index("prefect") if "prefect" in words else len(words)
    return words[start + 1 : start + 3] == ["deployment", "run"]
