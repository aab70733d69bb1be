"""A vLLM server behind an address, which somebody else has started."""
