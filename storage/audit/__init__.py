"""What stored rows prove by themselves."""
