"""vLLM, in a child process of its own."""
