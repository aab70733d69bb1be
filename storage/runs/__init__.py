"""A run's folder: its tables, its policies, who works on it."""
