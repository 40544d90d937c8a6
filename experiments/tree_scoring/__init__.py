"""How fast a list is scored by trees, beside the libraries themselves."""
