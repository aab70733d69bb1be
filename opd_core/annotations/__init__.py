"""Annotations: TimeLens-100K for a run, other data sets by import."""
