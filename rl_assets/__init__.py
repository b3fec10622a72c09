"""Continuous reinforcement learning of market agents, as Dagster assets."""
