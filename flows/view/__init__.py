"""`videoopd view`: a run in a browser - curves, rollouts, and the video beside the tokens."""
