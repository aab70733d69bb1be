"""Which Prefect server a `videoopd` command speaks to, and with which settings: decided here only.

A command uses, in this order:
1. the server named by PREFECT_API_URL, which then has to answer;
2. the server that `make up` started in this project;
3. none: `flows/server/local.py` starts one for the length of the command.

`apply()` runs before the first import of Prefect, because Prefect reads its settings then. It gives
`prefect.toml` to Prefect through environment variables, so that the settings hold in any folder.
"""

from __future__ import annotations

import json
import os
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from flows.shipped import checkout, shipped_files
from opd_core.types import VideoOPDError

_PATHS = {
    "PREFECT_HOME": "",
    "PREFECT_PROFILES_PATH": "profiles.toml",
    "PREFECT_RESULTS_LOCAL_STORAGE_PATH": "storage",
    "PREFECT_SERVER_MEMO_STORE_PATH": "memo_store.toml",
}
"""Settings that are places inside the home folder; the home itself first."""

_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Nothing here needs the network, so nothing may try."""

_OUR_OWN_IMPORTS = {"PYTHONSAFEPATH": "1"}
"""Python's -P, which flow runs inherit: the folder they start in is the user's, who may have a
folder `flows` of their own there."""


TEMPORARY = "VIDEOOPD_TEMPORARY_SERVER"
"""Environment: the address of the server that a command has started for itself."""


def project_root() -> Path:
    """The folder with `prefect.toml`: this one if it has it, else the checkout of this program; the
    user's own `~/.local/share/videoopd` where it was installed from a wheel."""
    here = Path.cwd()
    return here if (here / "prefect.toml").is_file() else checkout() or _users_folder()


def working_folder() -> Path:
    """`project_root()` for processes to start in: made where the user has none yet."""
    from storage.files import make_folder

    make_folder(project_root())
    return project_root()


def _users_folder() -> Path:
    configured = Path(os.environ.get("XDG_DATA_HOME", ""))
    data = configured if configured.is_absolute() else Path.home() / ".local" / "share"
    return data / "videoopd"


def home() -> Path:
    """Folder of the server's database, logs and process ids."""
    configured = os.environ.get("PREFECT_HOME")
    return Path(configured).expanduser().resolve() if configured else project_root() / ".prefect"


def profiles_elsewhere() -> Path | None:
    """Where `prefect` commands started in any other folder look for a server; None where the
    user's environment says one place for all folders."""
    if os.environ.get("PREFECT_HOME") or os.environ.get("PREFECT_PROFILES_PATH"):
        return None
    return Path.home() / ".prefect" / "profiles.toml"


def environment() -> dict[str, str]:
    """Give `prefect.toml` as environment variables, with absolute paths; what is set already wins.

    With them comes what keeps a Prefect process from importing the folder it starts in.
    """
    own, shipped = project_root() / "prefect.toml", shipped_files() / "prefect.toml"
    settings = _flatten(tomllib.loads((own if own.is_file() else shipped).read_text()))
    settings |= {name: str(home() / place) for name, place in _PATHS.items()}
    settings |= _QUIET
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        settings["PREFECT_API_AUTH_STRING"] = password  # the server asks its own clients for it
    settings = {name: os.environ.get(name, value) for name, value in settings.items()}
    return settings | {"PREFECT_HOME": str(home())} | _OUR_OWN_IMPORTS


def apply() -> None:
    """Put `environment()` into this process. Call before Prefect is imported."""
    os.environ.update(environment())


def _flatten(table: dict[str, Any], prefix: str = "PREFECT") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(value, dict):
            flat |= _flatten(value, name)
        else:
            flat[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def answers(api_url: str, timeout: float = 3.0) -> bool:
    """Whether a Prefect API is there; one that asks for a password is. No proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{api_url.rstrip('/')}/health", timeout=timeout) as response:
            return json.load(response) is True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False


def stays(api_url: str | None) -> bool:
    """Whether the server there outlives the command that uses it."""
    return bool(api_url) and api_url != os.environ.get(TEMPORARY)


def named_server() -> str | None:
    """PREFECT_API_URL where it is set. Raises `VideoOPDError` where nothing answers there."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return None
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise VideoOPDError(
            f"PREFECT_API_URL = {url!r} is no address; write http://127.0.0.1:4200/api, or unset it"
        )
    if not os.environ.get("PREFECT_API_KEY") and not answers(url):
        raise VideoOPDError(
            f"no Prefect server answers at {url} (from PREFECT_API_URL); start one with `make up`, "
            "or unset PREFECT_API_URL to run without one"
        )
    return url
