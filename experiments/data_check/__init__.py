"""What the checks of a person's data find, and what they cost."""
