"""Spans: how an answer is read, what it is worth, and how sure a mean of such numbers is."""
