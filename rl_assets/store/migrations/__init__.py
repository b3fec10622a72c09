"""Alembic migrations of schema `rl_assets`. They create and change nothing outside it."""
