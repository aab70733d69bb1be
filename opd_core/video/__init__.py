"""Videos: which frames of a file a model sees, decoded in a process that may hang or crash."""
