"""The hub: a checkpoint by its name, in the hub's cache or brought there."""
