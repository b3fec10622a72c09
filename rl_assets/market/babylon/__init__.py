"""Babylon's own market: its snapshot files, the arithmetic of its live game, and an engine that plays them."""
