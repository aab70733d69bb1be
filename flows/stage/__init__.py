"""What the stages of a round are made of: reading rows, appending them, reusing what is known."""
