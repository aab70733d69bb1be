"""Trackers: a run's numbers in the tools that people have."""
