"""What a RULER judging says about its judge: figures, alarms and pictures for people.

Plots load matplotlib inside the functions that draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rl_assets.judging.ruler import MOVED, RulerReport, Seen
from rl_assets.judging.ruler_stats import agreement, flips, kendall, position_bias


def figures(report: RulerReport) -> dict[str, Any]:
    """Plain figures by name. What was not measured is left out; taus are Kendall's tau-b, in [-1, 1]."""
    judged = [seen for seen in report.seen if len(seen.scores)]
    several = [seen for seen in judged if len(seen.scores) > 1]
    usage = report.usage
    found: dict[str, Any] = {
        "judge_requests": usage.requests,
        "judge_answers_from_cache": usage.cached,
        "judge_answers_repaired": usage.repairs,
        "judge_tokens": usage.tokens_in + usage.tokens_out,
        "judge_dollars": round(usage.dollars, 6),
        "quarantined_by_class": dict(Counter(seen.failure for seen in report.seen if seen.failure)),
        "prompts_digested": sum(seen.digested > 0 for seen in judged),
        "passes_by_number": dict(Counter(str(len(seen.scores)) for seen in judged)),
    }
    pairs = [flips(a, b) for seen in several for a, b in combinations(seen.scores, 2)]
    ordered = sum(all_of for _, all_of in pairs)
    outcomes = [tau for seen in judged if (tau := expected_agreement(seen)) is not None]
    moved = [seen.moved for seen in judged if seen.moved is not None]
    canaries = [seen for seen in judged if seen.canary is not None]
    measured = {
        "tau_between_passes": _mean([agreement(seen.scores) for seen in several]),
        "pairs_flipped_between_passes": sum(opposite for opposite, _ in pairs) / ordered if ordered else None,
        "retest_noise_of_a_score": _retest(several),
        "position_bias_first_to_last": position_bias([(seen.scores, seen.positions) for seen in several]),
        "tau_with_expected_pnl": _mean(outcomes),
        "tau_without_agents_words": _mean(moved),
    }
    found |= {name: round(value, 4) for name, value in measured.items() if value is not None}
    return found | {
        "canaries": len(canaries),
        "canaries_that_won": sum(seen.failure == "canary" for seen in canaries),
        "ablations": len(moved),
        "ablations_that_moved_ranks": sum(tau < MOVED for tau in moved),
        "ablations_that_failed": sum(bool(seen.problem and not seen.failure) for seen in judged),
    }


def quarantined(report: RulerReport) -> list[dict[str, str]]:
    """Groups without a ranking, with the class and a sentence."""
    return [{"group": s.group_id, "class": s.failure, "problem": s.problem} for s in report.seen if s.failure]


def swayed(report: RulerReport) -> list[dict[str, str]]:
    """Groups in which words rather than actions decided: a planted episode won, or ranks changed without the words."""
    won = [{"group": seen.group_id, "why": seen.problem} for seen in report.seen if seen.failure == "canary"]
    return won + [
        {"group": seen.group_id, "why": f"without the agents' words its ranks are others (tau {seen.moved:.2f})"}
        for seen in report.seen
        if seen.moved is not None and seen.moved < MOVED
    ]


def expected_agreement(seen: Seen) -> float | None:
    """Tau between the mean scores and expected PnL; None where a member has none, or all have the same."""
    pnl = [value for value in seen.expected_pnl if value is not None]
    if len(pnl) != len(seen.expected_pnl) or len(set(pnl)) < 2:
        return None
    return kendall(list(seen.scores.mean(axis=0)), pnl)


def position_plot(report: RulerReport) -> bytes:
    """PNG: how much higher or lower a member is scored at each place than on average over its passes."""
    from rl_assets.reports.drawing import BLUE, INK, MUTED, canvas, nothing, png, style

    title = "Score by place in the prompt"
    by_place: dict[int, list[float]] = {}
    for seen in report.seen:
        if len(seen.scores) > 1:
            rest = seen.scores - seen.scores.mean(axis=0)
            for place, value in zip(seen.positions.ravel(), rest.ravel(), strict=True):
                by_place.setdefault(int(place) + 1, []).append(float(value))
    if not by_place:
        return nothing(title, "No group was judged in several passes.")
    places = sorted(by_place)
    means = [float(np.mean(by_place[place])) for place in places]
    errors = [float(np.std(by_place[place]) / np.sqrt(len(by_place[place]))) * 2 for place in places]
    figure = canvas(title)
    axes = style(figure.subplots(), "Place, from the first", "Score less the member's mean", whole_x=True)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.errorbar(places, means, errors, fmt="o", color=BLUE, ecolor=INK, elinewidth=1, capsize=3)
    figure.supxlabel("bars: two standard errors   zero everywhere: the place does not matter", fontsize=9, color=MUTED)
    return png(figure)


def agreement_plot(report: RulerReport) -> bytes:
    """PNG: how often passes agree with each other, and the judge with expected PnL, by group."""
    from rl_assets.reports.drawing import BLUE, MUTED, ORANGE, canvas, nothing, png, style

    title = "Agreement of the judge, by group"
    judged = [seen for seen in report.seen if len(seen.scores)]
    rows = {
        "between passes": ([agreement(s.scores) for s in judged if len(s.scores) > 1], BLUE),
        "with expected PnL": ([tau for s in judged if (tau := expected_agreement(s)) is not None], ORANGE),
    }
    rows = {name: row for name, row in rows.items() if row[0]}
    if not rows:
        return nothing(title, "Nothing was judged that can be compared.")
    figure = canvas(title)
    axes = style(figure.subplots(), "Kendall's tau (1: the same order, −1: the opposite)", "Groups")
    axes.hist(
        [values for values, _ in rows.values()],
        bins=np.linspace(-1, 1, 21).tolist(),
        color=[colour for _, colour in rows.values()],
        label=[f"{name}, mean {np.mean(values):.2f}" for name, (values, _) in rows.items()],
    )
    axes.legend(loc="upper left", fontsize=9, frameon=False, labelcolor=MUTED)
    return png(figure)


def sets_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: how a window's judgement set agrees with each recorded before it. rows: `judge`, `recorded_at`, `tau` and
    `pairs_flipped` of each earlier set, the last two None where nothing can be compared."""
    from rl_assets.reports.drawing import BLUE, MUTED, ORANGE, canvas, nothing, png, safe_label, style

    title = "Agreement with earlier judgement sets"
    known = [row for row in rows if row["tau"] is not None and row["pairs_flipped"] is not None]
    if not known:
        return nothing(title, "No earlier set judged the same groups.")
    figure = canvas(title)
    axes = style(figure.subplots(), "", "Kendall's tau, and share of pairs flipped")
    places = np.arange(len(known))
    axes.bar(places - 0.2, [row["tau"] for row in known], 0.4, color=BLUE, label="tau")
    axes.bar(places + 0.2, [row["pairs_flipped"] for row in known], 0.4, color=ORANGE, label="pairs flipped")
    labels = [f"{safe_label(str(row['judge']), 28)}\n{str(row['recorded_at'])[:16]}" for row in known]
    axes.set_xticks(places, labels, fontsize=7.5)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.legend(loc="lower left", fontsize=9, frameon=False, labelcolor=MUTED)
    return png(figure)


def _retest(several: Sequence[Seen]) -> float | None:
    """Standard deviation of one member's score between two passes, pooled over groups."""
    squares = sum(float(np.sum((seen.scores - seen.scores.mean(axis=0)) ** 2)) for seen in several)
    freedom = sum((len(seen.scores) - 1) * len(seen.members) for seen in several)
    return float(np.sqrt(squares / freedom)) if freedom else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
