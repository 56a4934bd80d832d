"""The parts of the page that `kdcore report` writes. Internal."""
