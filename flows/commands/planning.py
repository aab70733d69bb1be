"""`plan`: what a config will take, before it is run."""

from __future__ import annotations

import click

from flows.commands.arguments import at_least_one, command, config, number, overrides

above_zero = number(float, lambda value: 0.0 < value < float("inf"), "a number above 0")
part_of_peak = number(float, lambda part: 0.0 < part <= 1.0, "a share above 0, at most 1")


@command("plan", "what a round takes: memory, hours, disk; what fits")
@config
@click.option("--gpu", metavar="NAME", help="as H100, L40S (default: the card that is here)")
@click.option("--memory-gib", type=above_zero, metavar="N", help="of the device, not its own")
@click.option(
    "--mfu", type=part_of_peak, default=0.4, metavar="X",
    help="the share of the card's peak that is taken to be reached",
)  # fmt: skip
@click.option(
    "--devices", type=at_least_one, metavar="N",
    help="what one process of N takes: the update in shards, the other stages' videos dealt out "
    "(default: those of [cluster], else one)",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="for programs; bytes and FLOPs as numbers")
@overrides
def plan(
    config: str, gpu: str | None, memory_gib: float | None, mfu: float, devices: int | None,
    as_json: bool, overrides: tuple[str, ...],
) -> int:  # fmt: skip
    """Returns 1 where something does not fit."""
    from flows.commands.targets import config_target
    from flows.console.plan_tables import print_plan, print_plan_as_json
    from opd_core.config.load import load_config
    from opd_core.plan.plan_of_config import machine_asked, plan_of

    target = config_target(config, overrides)
    loaded = load_config(target.file, target.overrides)
    made = plan_of(loaded, machine_asked(loaded, gpu, memory_gib, devices), mfu)
    if as_json:
        print_plan_as_json(made)
    else:
        print_plan(made)
    return 0 if made.fits else 1
