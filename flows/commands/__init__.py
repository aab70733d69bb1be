"""The commands of `videoopd`, a module a group: what each is asked with, and who answers.

`register(commands)` of a module adds its parsers. A module imports nothing heavy until one of its
commands runs, so that `--help` is instant.
"""
