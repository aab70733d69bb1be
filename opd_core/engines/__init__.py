"""Engines: what samples from a policy, and may score; each is a room behind `base.py`."""
