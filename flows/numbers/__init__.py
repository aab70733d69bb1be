"""What a run's tables say in numbers: one row a policy, an optimiser step, a stage of a round."""
