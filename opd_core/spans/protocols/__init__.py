"""Evaluation protocols: by which rule an answer is read, held against the truth and counted."""
