"""`up`, `down`: the Prefect server of this project."""

from __future__ import annotations

import click

from flows.commands.arguments import at_least_one, command


@command("up", "start a Prefect server on loopback that serves the deployments")
@click.option(
    "--gpus", type=at_least_one, metavar="N",
    help="cards of this machine: rounds side by side wait for each other's (the limit `gpu`)",
)  # fmt: skip
def up(gpus: int | None) -> None:
    import os

    from flows.server.local import up

    url = up()
    if gpus is not None:
        os.environ["PREFECT_API_URL"] = url  # before Prefect is imported
        from flows.prefect_page.gpu_limit import LIMIT, set_limit

        set_limit(gpus)
        print(f"the limit {LIMIT!r} has {gpus} slots")


@command("down", "stop what `up` started")
def down() -> None:
    from flows.server.local import down

    down()
