"""A Triton server's half of serving: its configuration, its model repository, and a server of one's own."""
