"""The curriculum: which rollouts a round trains on, one module a curriculum."""
