"""The trainer's own forward pass as an engine: transformers, on prefix trees."""
