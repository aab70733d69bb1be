"""The Lance tables: their columns, writing them once, which rows are in force."""
