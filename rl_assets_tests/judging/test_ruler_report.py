from __future__ import annotations

import numpy as np
import pytest

from rl_assets.judging.ruler import RulerReport, Seen
from rl_assets.judging.ruler_client import Usage
from rl_assets.judging.ruler_report import agreement_plot, figures, position_plot, quarantined, sets_plot, swayed

PNG = b"\x89PNG"
POSITIONS = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0]])
MEMBERS = ("a", "b", "c")


def seen(name: str, scores: list[list[float]], **rest) -> Seen:
    return Seen(name, MEMBERS, np.array(scores), POSITIONS[: len(scores)], **{"expected_pnl": (1.0, 2.0, 3.0), **rest})


REPORT = RulerReport(
    [
        seen("same", [[0.1, 0.5, 0.9]] * 3, moved=1.0),
        seen("shaky", [[0.1, 0.5, 0.9], [0.5, 0.1, 0.9], [0.1, 0.5, 0.9]], moved=0.2, digested=2),
        seen("fooled", [[0.3, 0.2, 0.1]] * 3, canary=0.9, failure="canary", problem="it won"),
        Seen("lost", MEMBERS, np.zeros((0, 3)), np.zeros((0, 3), int), (None,) * 3, "transport", "out of reach"),
    ],
    Usage(requests=11, cached=2, repairs=1, tokens_in=900, tokens_out=100, dollars=0.25),
)


def test_figures_say_what_was_measured():
    told = figures(REPORT)
    assert (told["judge_requests"], told["judge_answers_from_cache"], told["judge_tokens"]) == (11, 2, 1000)
    assert told["quarantined_by_class"] == {"canary": 1, "transport": 1}
    assert told["passes_by_number"] == {"3": 3}
    assert told["prompts_digested"] == 1
    assert told["tau_between_passes"] == pytest.approx((1 + 5 / 9 + 1) / 3, abs=1e-4)
    assert told["pairs_flipped_between_passes"] == pytest.approx(2 / 27, abs=1e-4)
    assert told["tau_with_expected_pnl"] == pytest.approx((1 + 1 - 1) / 3, abs=1e-4)
    assert (told["canaries"], told["canaries_that_won"]) == (1, 1)
    assert (told["ablations"], told["ablations_that_moved_ranks"]) == (2, 1)
    # Two members are 0.4 away from themselves in one pass of three; 3 groups of 3 members in 3 passes.
    assert told["retest_noise_of_a_score"] == pytest.approx((2 * 0.4**2 * 2 / 3 / 18) ** 0.5, abs=1e-4)


def test_nothing_judged_gives_no_figure_that_was_not_measured():
    told = figures(RulerReport())
    assert told["judge_requests"] == 0
    assert not any("tau" in name or "bias" in name or "noise" in name for name in told)


def test_alarms_name_the_group_and_the_reason():
    assert [row["group"] for row in swayed(REPORT)] == ["fooled", "shaky"]
    assert quarantined(REPORT)[1] == {"group": "lost", "class": "transport", "problem": "out of reach"}


@pytest.mark.parametrize("plot", [agreement_plot, position_plot])
def test_plots_are_pictures_even_of_nothing(plot):
    assert plot(REPORT).startswith(PNG)
    assert plot(RulerReport()).startswith(PNG)
    assert plot(REPORT) == plot(REPORT)


def test_agreement_between_sets_is_a_picture_whatever_a_judge_is_called():
    row = {"judge": "ruler:$x$ <b>", "recorded_at": "2026-11-24T10:00:00+00:00", "tau": 0.4, "pairs_flipped": 0.3}
    assert sets_plot([row, {**row, "tau": -1.0}]).startswith(PNG)
    assert sets_plot([{**row, "tau": None, "pairs_flipped": None}]) == sets_plot([])
