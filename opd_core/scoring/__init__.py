"""Scores: what the teacher thinks of answers, and what a score depends on."""
