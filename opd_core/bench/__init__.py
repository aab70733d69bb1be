"""What `make bench` measures of the algorithm itself. Ratios of medians, interleaved in one run."""
