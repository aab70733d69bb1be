"""The update: losses, steps, and what each step said."""
