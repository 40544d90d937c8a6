"""Search for better settings of the shipped configurations, and what they are worth on rows it never saw."""
