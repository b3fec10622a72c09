"""`python -m rl_assets` is `rl-assets`."""

from rl_assets.cli import main

main()
