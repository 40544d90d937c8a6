"""Whether a gateway's memory and descriptors stay where they are, hour after hour."""
