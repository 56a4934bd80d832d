"""Models: loading, trunk and head, attention, vocabulary, generation. Internal."""
