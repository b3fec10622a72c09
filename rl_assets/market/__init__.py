"""The benchmark world: snapshots, their sealed truth, and the engine that plays them. Pure NumPy."""
