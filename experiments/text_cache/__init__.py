"""What a ranker's memory of texts is worth."""
