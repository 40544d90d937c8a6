"""What a gateway still answers in time when more is asked of it than it can do."""
