"""A study: the same data and optimiser, several ways to train, several seeds, one table."""
