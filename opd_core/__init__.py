"""The algorithm of Video-OPD. Knows no Prefect, no Lance, no table and no path of a run."""
