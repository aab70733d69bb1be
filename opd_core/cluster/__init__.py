"""Ray: the workers of a stage, on this machine or on many."""
