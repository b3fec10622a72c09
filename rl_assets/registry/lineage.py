"""From a model back to every episode: checkpoint, batch, manifest, judgement sets, groups and episodes, down to step 0.

All of it is read from the database, in one statement per question; nothing on disk is needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import psycopg

from rl_assets.registry.retention import pruned_steps
from rl_assets.registry.rows import Model, get_model

EPISODES = """
  SELECT b.id, g.value ->> 'group_id', t.value, r.value::float8, o.judgement_set, o.window_id,
         e."scenarioId", e."agentId", e."trajectoryId" IS NOT NULL
  FROM rl_assets.batches AS b
  CROSS JOIN LATERAL jsonb_array_elements(b.manifest -> 'groups') WITH ORDINALITY AS g (value, place)
  CROSS JOIN LATERAL jsonb_array_elements_text(g.value -> 'trajectory_ids') WITH ORDINALITY AS t (value, place)
  JOIN LATERAL jsonb_array_elements_text(g.value -> 'rewards') WITH ORDINALITY AS r (value, place) ON r.place = t.place
  LEFT JOIN rl_assets.offers AS o ON o.batch_id = coalesce(b.branch_of, b.id)
    AND o.group_id = g.value ->> 'group_id'
  LEFT JOIN trajectories AS e ON e."trajectoryId" = t.value
  WHERE b.id = ANY(%s) ORDER BY b.id, g.place, t.place
"""


@dataclass(frozen=True, slots=True)
class Source:
    """An episode that a model was trained on. judgement_set and window are None where the ledger no longer holds the
    offer that was claimed; scenario and agent_id where Babylon no longer holds the episode, which `recorded` says."""

    trajectory_id: str
    group_id: str
    reward: float
    judgement_set: str | None
    window: str | None
    scenario: str | None
    agent_id: str | None
    recorded: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """A model with what it was trained on: nothing for step 0. pruned: its checkpoint was deleted by retention.

    judgement_sets, windows: what the manifest names.
    """

    model: Model
    judgement_sets: tuple[str, ...]
    windows: tuple[str, ...]
    sources: tuple[Source, ...]
    pruned: bool

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source.group_id for source in self.sources))

    def by_origin(self) -> list[tuple[str, str, int, int]]:
        """Window, kind of scenario, groups and episodes of each, in order: what a picture can show of a thousand."""
        episodes = Counter((source.window or "unknown", kind_of(source.scenario)) for source in self.sources)
        groups = Counter(
            {(source.group_id, source.window or "unknown", kind_of(source.scenario)) for source in self.sources}
        )
        held = Counter((window, kind) for _, window, kind in groups)
        return [(window, kind, held[window, kind], count) for (window, kind), count in sorted(episodes.items())]

    def to_json(self, *, episodes: bool) -> dict[str, Any]:
        m = self.model
        shown: dict[str, Any] = {
            "model_line": m.model_line,
            "step": m.step,
            "version": m.version,
            "state": m.state,
            "parent_step": m.parent_step,
            "checkpoint": str(m.checkpoint_path),
            "digest": m.digest,
            "pruned": self.pruned,
            "batch": m.batch_id,
            "judgement_sets": list(self.judgement_sets),
            "windows": list(self.windows),
            "groups": len(self.groups),
            "episodes": len(self.sources),
            "episodes_still_recorded": sum(source.recorded for source in self.sources),
        }
        if episodes:
            shown["sources"] = [{name: getattr(s, name) for name in Source.__slots__} for s in self.sources]
        return shown


def lineage_of(conn: psycopg.Connection, model_line: str, step: int) -> list[Generation]:
    """A model and what it stands on, down to step 0, each with its episodes. Raises LedgerConflict where there is none
    of that step."""
    models = [get_model(conn, model_line, step)]
    while (parent := models[-1].parent_step) is not None:
        models.append(get_model(conn, model_line, parent))
    batch_ids = [model.batch_id for model in models if model.batch_id is not None]
    manifests = {
        batch_id: (tuple(sets), tuple(windows))
        for batch_id, sets, windows in conn.execute(
            """SELECT id, manifest -> 'judgement_sets', manifest -> 'windows' FROM rl_assets.batches
               WHERE id = ANY(%s)""",
            [batch_ids],
        )
    }
    sources: dict[str, list[Source]] = {}
    for batch_id, group, trajectory, reward, judged, window, scenario, agent, recorded in conn.execute(
        EPISODES, [batch_ids]
    ):
        sources.setdefault(batch_id, []).append(
            Source(trajectory, group, reward, judged, window, scenario, agent, recorded)
        )
    pruned = pruned_steps(conn, model_line)
    return [
        Generation(
            model,
            *manifests.get(model.batch_id or "", ((), ())),
            sources=tuple(sources.get(model.batch_id or "", ())),
            pruned=model.step in pruned,
        )
        for model in models
    ]


def kind_of(scenario: str | None) -> str:
    """The kind of a scenario: all benchmark snapshots of a split are one, since each is a scenario of its own."""
    if scenario is None:
        return "no longer recorded"
    parts = scenario.split("-")
    return "-".join(parts[:2]) if parts[0] == "benchmark" else scenario
