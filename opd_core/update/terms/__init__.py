"""The objectives of a config, one a module: what each needs, and its loss of a chunk."""
