"""What is written on Prefect's page of the tests' own server, read back by its API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from flows.prefect_page import sending
from flows.prefect_page.sending import PAGE

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import Artifact


@pytest.fixture
def page(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A client of the server; what is said on its page is wanted, though it is a temporary one."""
    from prefect.client.orchestration import get_client

    monkeypatch.setenv(PAGE, "1")
    monkeypatch.setattr(sending, "_next_try", float("-inf"))
    monkeypatch.setattr(sending, "_was_told", False)
    with get_client(sync_client=True) as client:
        yield client


def artifacts(client: SyncPrefectClient, key: str) -> list[Artifact]:
    """Of a key, the oldest first."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    named = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    return sorted(client.read_artifacts(artifact_filter=named), key=lambda a: str(a.created))


def cells(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A stage's table as name -> number."""
    return {row["number"]: row["value"] for row in rows}


def table(artifact: Artifact) -> dict[str, Any]:
    """Of a stage."""
    return cells(json.loads(str(artifact.data)))
