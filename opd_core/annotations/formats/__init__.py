"""Annotations of other data sets: one reader a format, all giving `Found` rows."""
