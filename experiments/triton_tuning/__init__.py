"""What `rankyard tune triton` finds for a text model and for a ranker."""
