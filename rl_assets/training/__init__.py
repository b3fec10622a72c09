"""Turning judged episodes into the next checkpoint: codec to ART, backends, the base policy, the training service."""
