"""What a config may say, and how one is read."""
