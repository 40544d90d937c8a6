"""The gateway against the limit of the machine."""
