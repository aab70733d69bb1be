"""What `make bench` measures of whole commands and runs."""
