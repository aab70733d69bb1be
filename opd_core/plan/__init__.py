"""What a config will take, before it is run: memory, FLOPs, tokens, hours and disk of each stage.

Pure arithmetic over config.json and the run's config; neither torch nor a checkpoint is opened.
"""
