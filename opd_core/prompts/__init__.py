"""Prompts: how the question is put and encoded, and what an answer to it depends on."""
