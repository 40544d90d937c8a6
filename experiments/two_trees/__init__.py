"""What a change to the gateway is worth: two checkouts side by side."""
