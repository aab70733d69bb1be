"""`up`, `down`: the Prefect server of this project."""

from __future__ import annotations

import argparse

from flows.commands.arguments import Commands, add


def register(commands: Commands) -> None:
    add(commands, "up", up, "start a Prefect server on loopback that serves the deployments")
    add(commands, "down", down, "stop what `up` started")


def up(options: argparse.Namespace) -> None:
    from flows.server.local import up as start

    start()


def down(options: argparse.Namespace) -> None:
    from flows.server.local import down as stop

    stop()
