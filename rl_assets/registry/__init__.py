"""Which models there are, which one is live, and who may take its place."""
