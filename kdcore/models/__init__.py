"""Models: loading, trunk and head, attention, vocabularies, generation. Internal."""
