"""How well a policy or any model answers the eval split, with intervals."""
