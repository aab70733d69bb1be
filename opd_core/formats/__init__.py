"""Readers of other people's annotation files, one module a format; `readers.py` lists them."""
