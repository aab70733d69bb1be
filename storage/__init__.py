"""What a run leaves on disk: versioned Lance tables, published checkpoints, SQL over both.

The only package that knows Lance. Import from the modules (`from storage.runs.run import Run`);
this one stays empty so that a command line that only prints its help pays for nothing.
"""
