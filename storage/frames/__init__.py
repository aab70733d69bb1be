"""The frame store: what was decoded, kept for the next stage and run."""
