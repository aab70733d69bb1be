"""Engines: what samples from a policy. Each is one file behind the protocol in `base.py`."""
