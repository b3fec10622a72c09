"""Pictures that nobody looks at: composed and left blank, since drawing takes half the time of an asset."""

from __future__ import annotations

import pytest
from PIL import Image


def leave_blank(patch: pytest.MonkeyPatch) -> None:
    """Drawing has tests of its own, in `reports/`."""
    patch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)
    patch.setattr("rl_assets.reports.drawing.with_palette", lambda _: Image.new("P", (1, 1)))
