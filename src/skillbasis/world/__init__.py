"""The embedded world: problems with exact answers, styles of working, and a small reasoner trained on them."""
