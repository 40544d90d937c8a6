"""What comes back of what position bias takes from a ranker, on clicks whose truth is known."""
