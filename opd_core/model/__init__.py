"""Models: a Hugging Face checkpoint that runs prefix trees."""
