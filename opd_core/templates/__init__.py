"""The question: how it is put, and how an answer to it is read."""
