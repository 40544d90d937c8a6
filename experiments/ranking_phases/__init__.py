"""How much a second phase adds to the first, and how the two are best joined."""
