"""Prefect flows and the command line: the only package that knows Prefect.

Import nothing here: `videoopd --help` and every `prefect` command in this folder load it.
"""
