"""What a catalogue's terms are worth to a tagger."""
