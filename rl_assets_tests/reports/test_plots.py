"""Plots: valid pictures, the same bytes every time, whatever the labels and however few the numbers."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rl_assets.errors import MalformedInput
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.reports.drawing import LONGEST_LABEL, safe_label
from rl_assets.reports.outcomes import outcomes_picture
from rl_assets.reports.plots import (
    as_markdown_image,
    distribution_by_policy,
    group_spread,
    learning_curve,
    paired_gate,
    pnl_by_policy,
    price_paths,
)
from rl_assets.store.outcomes import Outcome
from rl_assets_tests.reports.pages import HOSTILE

PNL = "PnL (dollars per episode)"
LARGEST = 75_000
"""Bytes: pictures are stored inside the metadata of a materialization."""
POINT = {
    "update": 0.0,
    "loss/train": -0.01,
    "loss/entropy": 1.2,
    "loss/kl_base": 0.0,
    "loss/clip_fraction": 0.0,
    "loss/importance_ratio": 1.0,
    "loss/grad_norm": 0.4,
    "time/update_s": 2.0,
}


def moved(name: str, change: float) -> Outcome:
    return Outcome(name, 100.0, 100.0 + change, change, "BULLISH", None, None, None, None, None)


def ended(name: str, probability: float | None, outcome: str = "YES") -> Outcome:
    return Outcome(None, None, None, None, None, "m", name, outcome, probability, None)


EMPTY: dict[str, Callable[[], bytes]] = {
    "outcomes": lambda: outcomes_picture([]),
    "outcomes without a price": lambda: outcomes_picture([ended("m", None)]),
    "rewards": lambda: distribution_by_policy({}, PNL),
    "rewards of nobody": lambda: distribution_by_policy({"hold": []}, PNL),
    "groups": lambda: group_spread({}, PNL),
    "curve": lambda: learning_curve([]),
    "gate": lambda: paired_gate({}, 0.0, 0.1, 0.0),
    "policies": lambda: pnl_by_policy({}),
}
SINGLE: dict[str, Callable[[], bytes]] = {
    "outcome": lambda: outcomes_picture([ended("m", 0.5, "NO")]),
    "change": lambda: outcomes_picture([moved("Tesla", 0.0)]),
    "reward": lambda: distribution_by_policy({"hold": [0.0]}, PNL),
    "group": lambda: group_spread({"group": [0.5]}, PNL),
    "update": lambda: learning_curve([POINT]),
    "update of the warm start": lambda: learning_curve([{"update": 0.0, "loss": 2.0}]),
    "day": lambda: paired_gate({7: 2.0}, None, 0.1, 2.0),
    "policy": lambda: pnl_by_policy({"hold": (0.0, 0.0, 0.0)}),
    "policy without interval": lambda: pnl_by_policy({"hold": (0.0, math.nan, math.nan), "oracle": (1.0, None, None)}),
    "market": lambda: price_paths(generate("train", 1, WorldConfig(ticks=2, markets=1, perps=0))[0], None),
    "perpetual": lambda: price_paths(*generate("train", 1, WorldConfig(ticks=2, markets=0, perps=1))),
}
MANY: dict[str, Callable[[], bytes]] = {
    "outcomes": lambda: outcomes_picture(
        [moved(f"Company {i}", i - 20.5) for i in range(40)] + [ended(f"Will {i}?", i / 40) for i in range(40)]
    ),
    "rewards": lambda: distribution_by_policy({f"policy {i}": [i * j / 7 for j in range(99)] for i in range(40)}, PNL),
    "groups": lambda: group_spread({f"group-{i}": [(i * j) % 11 / 10 for j in range(8)] for i in range(125)}, PNL),
    "curve": lambda: learning_curve([{**POINT, "update": float(i), "loss/train": 1 / (i + 1)} for i in range(500)]),
    "gate": lambda: paired_gate({200_000 + i: math.sin(i) * 30 for i in range(90)}, -1.0, 0.1, 2.0),
    "policies": lambda: pnl_by_policy({f"policy {i}": (i, i - 3, i + 3) for i in range(60)}),
    "prices": lambda: price_paths(*generate("train", 1, WorldConfig(ticks=200, markets=12, perps=8))),
}


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    return picture


@pytest.mark.parametrize("draw", [*EMPTY.values(), *SINGLE.values(), *MANY.values()])
def test_a_plot_of_nothing_of_one_or_of_many_is_a_picture_fit_for_metadata(draw: Callable[[], bytes]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = draw()
    picture = opened(png)
    assert picture.format == "PNG" and picture.width == 900 and 140 <= picture.height <= 1100
    assert len(picture.convert("L").getcolors() or []) > 1
    assert len(png) < LARGEST


@pytest.mark.parametrize("draw", [MANY["gate"], SINGLE["market"]])
def test_the_same_input_gives_the_same_bytes_and_no_metadata(draw: Callable[[], bytes]):
    first = draw()
    assert draw() == first
    assert not opened(first).info


def test_threads_may_draw_at_the_same_time():
    draws = [SINGLE["day"], SINGLE["policy"]] * 2
    alone = [draw() for draw in draws]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda draw: draw(), draws)) == alone


def test_hostile_labels_are_drawn_as_they_stand():
    assert opened(distribution_by_policy({label: [1.0, 2.0] for label in HOSTILE}, PNL)).width == 900
    assert opened(pnl_by_policy(dict.fromkeys(HOSTILE, (1.0, 0.0, 2.0)))).width == 900
    assert opened(group_spread({label: [0.5, 0.6] for label in HOSTILE}, PNL)).width == 900
    assert opened(outcomes_picture([each(label, 0.5) for label in HOSTILE for each in (moved, ended)])).width == 900


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_a_label_is_short_printable_and_never_mathtext(text: str):
    from matplotlib.cbook import is_math_text

    label = safe_label(text)
    shown = label.replace(r"\$", "$")
    assert 0 < len(shown) <= LONGEST_LABEL and shown.isprintable()
    assert not is_math_text(label)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize(
    "draw",
    [
        lambda bad: distribution_by_policy({"hold": [0.0, bad]}, PNL),
        lambda bad: group_spread({"group": [bad]}, PNL),
        lambda bad: learning_curve([{**POINT, "loss/train": bad}]),
        lambda bad: learning_curve([{**POINT, "update": bad}]),
        lambda bad: paired_gate({1: bad}, 0.0, 0.1, 0.0),
        lambda bad: paired_gate({1: 0.0}, 0.0, 0.1, bad),
        lambda bad: pnl_by_policy({"hold": (bad, 0.0, 1.0)}),
        lambda bad: outcomes_picture([moved("Tesla", 1.0 if bad is None else bad), ended("m", math.nan)]),
    ],
)
def test_a_number_that_cannot_be_drawn_is_refused_in_a_sentence(draw: Callable, bad: float):
    with pytest.raises(MalformedInput, match="cannot be drawn; leave out what was not measured"):
        draw(bad)


def test_an_infinite_bound_is_refused():
    with pytest.raises(MalformedInput, match="lower bound"):
        paired_gate({1: 0.0}, math.inf, 0.1, 0.0)
    with pytest.raises(MalformedInput, match="hold"):
        pnl_by_policy({"hold": (0.0, -math.inf, 1.0)})


def test_a_distribution_is_headed_by_what_it_is_of(monkeypatch: pytest.MonkeyPatch):
    figures = []
    monkeypatch.setattr("rl_assets.reports.plots.png", lambda figure: figures.append(figure) or b"")
    for axis in ("Score (0 to 1)", PNL):
        distribution_by_policy({"hold": [0.0, 1.0]}, axis)
        group_spread({"group": [0.0, 1.0]}, axis)
    titles = [figure.get_suptitle() for figure in figures]
    assert titles == ["Score by policy", "Score within groups", "PnL by policy", "PnL within groups"]


def test_sealed_values_are_drawn_only_where_they_are_given():
    snapshot, truth = generate("train", 3, WorldConfig())
    assert price_paths(snapshot, None) != price_paths(snapshot, truth)


def test_the_markdown_holds_the_picture_itself():
    png = SINGLE["day"]()
    markdown = as_markdown_image(png)
    head, _, rest = markdown.partition("base64,")
    assert head == "![plot](data:image/png;" and rest.endswith(")")
    assert base64.b64decode(rest[:-1], validate=True) == png
