"""`rankyard bench`: load for a gateway, and what it did under it."""
