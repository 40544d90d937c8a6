"""What a text costs beside the model: its tokens, and the reading of its answer."""
