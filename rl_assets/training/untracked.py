"""ART's models without ART's own W&B runs: what is tracked of a training is `rl_assets.resources.Tracking`'s.

Importing this imports ART.
"""

from __future__ import annotations

from typing import Any

import art


class _Untracked(art.TrainableModel):
    """A model to train. ART would write provenance to W&B after a training, and an error there would hide that the
    training ended: it does so wherever WANDB_API_KEY is set and WANDB_MODE is offline."""

    def _get_wandb_run(self) -> None:
        """None: there is no run."""


def untracked_model(**known: Any) -> art.TrainableModel:
    """A model to train, of the name, project, base model and whatever else of ART's are known."""
    return _Untracked(**known)
