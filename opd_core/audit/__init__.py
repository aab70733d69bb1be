"""Computing again what rows claim."""
