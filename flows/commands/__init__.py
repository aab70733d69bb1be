"""The commands of `videoopd`, a module a group: what each is asked with, and who answers.

`flows/cli.py` lists them. A module imports nothing heavy until one of its commands runs, so that
`--help` is instant.
"""
