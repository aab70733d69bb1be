"""`up`, `down`: the Prefect server of this project."""

from __future__ import annotations

from flows.commands.arguments import command


@command("up", "start a Prefect server on loopback that serves the deployments")
def up() -> None:
    from flows.server.local import up

    up()


@command("down", "stop what `up` started")
def down() -> None:
    from flows.server.local import down

    down()
