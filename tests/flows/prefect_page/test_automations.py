"""The example automations, as a server takes them: made from their files, and triggered."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from flows.prefect_page.events import Committed, emit_committed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

pytestmark = pytest.mark.server

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "prefect"
RISES, FALLS = FOLDER / "go-on-while-miou-rises.yaml", FOLDER / "stop-when-miou-falls.yaml"


@pytest.fixture
def automations(page: SyncPrefectClient) -> Iterator[list[str]]:
    """Both of them, as `prefect automation create --from-file` makes them."""
    from prefect.events.schemas.automations import AutomationCore

    made = []
    for file in (RISES, FALLS):
        automation = AutomationCore.model_validate(yaml.safe_load(file.read_text()))
        answer = page._client.post("/automations/", json=automation.model_dump(mode="json"))
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["id"])
    yield made
    for automation_id in made:
        page._client.delete(f"/automations/{automation_id}")


def of_deployment(client: SyncPrefectClient, deployment: uuid.UUID) -> list[FlowRun]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    asked = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    return sorted(client.read_flow_runs(deployment_filter=asked), key=lambda r: str(r.created))


def test_the_examples_do_what_they_say(
    page: SyncPrefectClient, automations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of a deployment that rises is followed by another one with its config; one that falls
    in a flow that would go on is called off."""
    from prefect import flow

    from flows.prefect_page import events

    said: list[partial[object]] = []
    monkeypatch.setattr(events, "sent", lambda call: said.append(call))
    config = Path("/c.toml")
    for before, after, left in ((0.4, 0.5, 0), (0.5, 0.4, 2), (0.5, 0.4, 0)):
        emit_committed(
            Committed(
                str(uuid.uuid4()),
                Path("/runs/tiny"),
                config,
                ("focus.top_k=3", "a='b'"),
                1,
                left,
                "hash",
                before,
                after,
                0.1,
                0.2,
                4,
            )
        )
    rose, fell, fell_last = said

    @flow(name="videoopd")
    def videoopd(config: str, rounds: int = 1, overrides: list[str] | None = None) -> None: ...

    flow_id = page.create_flow(videoopd)
    deployment = page.create_deployment(flow_id, f"round-{uuid.uuid4()}", entrypoint="m:videoopd")
    parameters = {"config": "other.toml"}

    def run_of_it() -> FlowRun:
        return page.create_flow_run_from_deployment(deployment, parameters=parameters)

    def related(run: FlowRun) -> list[dict[str, str]]:
        return [
            {"prefect.resource.id": f"prefect.deployment.{deployment}",
             "prefect.resource.role": "deployment"},
            {"prefect.resource.id": f"prefect.flow-run.{run.id}",
             "prefect.resource.role": "flow-run"},
        ]  # fmt: skip

    first, goes_on, ends = run_of_it(), run_of_it(), run_of_it()
    rose(related=related(first))
    fell(related=related(goes_on))
    fell_last(related=related(ends))
    end = time.monotonic() + 30
    while len(runs := of_deployment(page, deployment)) < 4 or not any(
        run.state_name in ("Cancelling", "Cancelled") for run in runs
    ):
        assert time.monotonic() < end, [run.state_name for run in runs]
        time.sleep(0.2)
    *asked, (another) = runs
    assert another.parameters == {"config": str(config), "overrides": ["focus.top_k=3", "a='b'"]}
    called_off = {r.id for r in asked if r.state_name in ("Cancelling", "Cancelled")}
    assert called_off == {goes_on.id}
