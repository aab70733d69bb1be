"""The tiny world: synthetic videos, tiny models for them, and how those were trained."""
