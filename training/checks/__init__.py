"""What is in a person's own data before anything is trained on it: a file a kind of finding, and the page of all."""
