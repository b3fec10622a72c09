"""A batch in, the next checkpoint out: once, whole, or with a reason."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from rl_assets.agents.neural import NeuralPolicy
from rl_assets.episodes import Episode, Policy
from rl_assets.errors import CollapsedPolicy, MalformedInput, MissingCheckpoint
from rl_assets.grouping import build_groups
from rl_assets.registry.checkpoints import base_path, checkpoint_digest
from rl_assets.reports.plots import CURVES
from rl_assets.settings import REPOSITORY
from rl_assets.training.figures import UNKNOWN, UPDATES, WHOLE, described
from rl_assets.training.manifest import Manifest, ManifestGroup
from rl_assets.training.options import CpuTraining, Grpo, Limits
from rl_assets.training.recompute import with_logprobs
from rl_assets.training.result import TrainingResult
from rl_assets.training.service import GRPOTrainingService
from rl_assets_tests.processes import answering
from rl_assets_tests.training import made
from rl_assets_tests.training.made import BATCH, LINE, QUICK, by_id, judged, played, rewarded


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Sums in one order, so that two trainings can be compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(data: Path, manifest: Manifest, episodes: list[Episode], grpo: Grpo = QUICK) -> TrainingResult:
    return GRPOTrainingService(data, LINE, grpo=grpo).train(manifest, by_id(episodes))


def steps(data: Path) -> list[str]:
    """Names of everything beside the checkpoints, so that half a checkpoint would be seen."""
    return sorted(path.name for path in GRPOTrainingService(data, LINE).checkpoint(0).parent.iterdir())


def test_a_batch_becomes_the_next_step_once_and_its_base_stays_as_it_was(
    data: Path, batch: list[Episode], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    base = checkpoint_digest(GRPOTrainingService(data, LINE).checkpoint(0))
    with caplog.at_level("INFO", logger="rl_assets.training.service"):
        first = train(data, judged(batch), batch)
    assert "Packed" not in "".join(capfd.readouterr())
    assert [line for line in caplog.messages if line.startswith("ART: Packed 64 trajectories into ")]
    again = train(data, judged(batch), batch)
    assert steps(data) == ["0000", "0001"]
    assert (
        (first.step, first.checkpoint_digest) == (again.step, again.checkpoint_digest) == (1, again.checkpoint_digest)
    )
    assert checkpoint_digest(GRPOTrainingService(data, LINE).checkpoint(0)) == base
    assert first.curve == again.curve
    assert again.seconds == 0.0
    assert NeuralPolicy(Path(str(first.checkpoint_path))).grammar is not None


def test_a_step_that_is_saved_is_returned_without_loading_what_trains(
    data: Path, batch: list[Episode], tmp_path: Path
) -> None:
    trained = train(data, judged(batch), batch)
    pickled = tmp_path / "batch.pkl"
    pickled.write_bytes(pickle.dumps((judged(batch), by_id(batch))))
    code = f"""
import pickle, sys
from pathlib import Path
from rl_assets.training.service import GRPOTrainingService
manifest, episodes = pickle.loads(Path({str(pickled)!r}).read_bytes())
print(GRPOTrainingService(Path({str(data)!r}), {LINE!r}).train(manifest, episodes).checkpoint_digest)
print([name for name in ("torch", "transformers", "art") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [trained.checkpoint_digest, "[]"]


def test_the_first_update_sees_the_policy_that_played(data: Path, batch: list[Episode]) -> None:
    first = train(data, judged(batch), batch).curve[0]
    assert first["loss/importance_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert first["loss/kl_base"] == pytest.approx(0.0, abs=1e-5)
    assert first["loss/clip_fraction"] == 0.0


def test_every_update_is_measured(data: Path, batch: list[Episode]) -> None:
    result = train(data, judged(batch), batch)
    told = {
        *("loss/kl_base", "loss/clip_fraction", "loss/entropy", "loss/grad_norm", "data/advantage_spread"),
        *("data/tokens", "data/staleness", "loss/importance_ratio", "loss/importance_ratio_max"),
    }
    assert told <= CURVES.keys()  # so each is drawn
    for point in result.curve:
        assert told <= point.keys()
        assert all(math.isfinite(value) for value in point.values())
        assert point["loss/grad_norm"] > 0
        assert point["loss/entropy"] > 0
        assert 0 <= point["policy/trade_share"] <= 1
    assert result.metrics["data/staleness"] == 0.0
    assert {"held_out/gain_pass_1", "data/best_pass", "loss/clip_fraction"} <= result.metrics.keys()
    rows = {str(row["metric"]): row for row in described(result.metrics)}
    assert [name for name, row in rows.items() if row["meaning"] == UNKNOWN.meaning] == []
    assert (rows["data/best_pass"]["value"], rows["data/best_pass"]["over"]) == (1, WHOLE)
    assert isinstance(rows["data/passes"]["value"], int)
    assert (rows["loss/entropy"]["unit"], rows["loss/entropy"]["over"]) == ("nats per token", UPDATES)


def share(episode: Episode, *kinds: str) -> float:
    return sum(step.action.get("do") in kinds for step in episode.steps) / len(episode.steps)


def without_credit(episodes: list[Episode]) -> list[Episode]:
    return [replace(e, steps=tuple(replace(s, credit=None) for s in e.steps)) for e in episodes]


def test_what_is_rewarded_is_done_more_often(data: Path, batch: list[Episode]) -> None:
    wanted = {episode.trajectory_id: share(episode, "long", "short") for episode in batch}
    result = train(data, rewarded(judged(batch), wanted), without_credit(batch))
    after = played(Path(str(result.checkpoint_path)), range(100, 108), step=1)
    before = sum(wanted.values()) / len(wanted)
    assert sum(share(e, "long", "short") for e in after) / len(after) > before + 0.1


def test_a_policy_that_learns_to_hold_never_becomes_a_step(data: Path, batch: list[Episode]) -> None:
    wanted = {episode.trajectory_id: share(episode, "hold") for episode in batch}
    training = CpuTraining(passes=8, sequences=8, holdout=0.0, limits=Limits(kl_ceiling=99.0))
    eager = Grpo(learning_rate=3e-3, cpu=training)
    with pytest.raises(CollapsedPolicy, match="the share of its answers that trade"):
        train(data, rewarded(judged(batch), wanted), without_credit(batch), eager)
    assert steps(data) == ["0000"]


@pytest.fixture(scope="module")
def trainers() -> Iterator[Callable[[Path, Path, float], psutil.Process]]:
    """Has a pickled batch trained by a process of its own, which keeps how far it is after so many seconds of work."""
    with answering(made.__name__, OMP_NUM_THREADS="1") as ask:

        def start(data: Path, batch: Path, keep_seconds: float) -> psutil.Process:
            return psutil.Process(ask(json.dumps([str(data), str(batch), keep_seconds])))

        yield start


@pytest.mark.parametrize(("keep_seconds", "first_kept"), [(3600.0, "a pass"), (0.0, "an update")])
def test_a_killed_training_leaves_no_step_and_goes_on_where_it_was(
    data: Path,
    batch: list[Episode],
    tmp_path: Path,
    trainers: Callable[[Path, Path, float], psutil.Process],
    keep_seconds: float,
    first_kept: str,
) -> None:
    manifest = judged(batch)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(data, elsewhere)
    pickled = tmp_path / "batch.pkl"
    pickled.write_bytes(pickle.dumps((manifest, by_id(batch))))
    trainer = trainers(data, pickled, keep_seconds)
    kept = data / "art" / "rl-assets" / "models" / LINE / "unfinished" / manifest.batch_id / "progress.pt"
    try:
        while not kept.exists():
            assert trainer.is_running(), f"the training ended before {first_kept} was kept"
            time.sleep(0.002)
    finally:
        trainer.kill()
        trainer.wait(60)
    assert steps(data) == ["0000"]
    held = torch.load(kept, weights_only=True)
    assert held["passes"] if first_kept == "a pass" else len(held["curve"]) > 0
    resumed, whole = train(data, manifest, batch), train(elsewhere, manifest, batch)
    assert steps(data) == ["0000", "0001"]
    assert not kept.exists()
    assert resumed.curve == whole.curve
    assert resumed.checkpoint_digest == whole.checkpoint_digest


def test_the_optimizer_goes_on_from_its_parent(data: Path, batch: list[Episode]) -> None:
    first = train(data, judged(batch), batch)
    more = played(Path(str(first.checkpoint_path)), range(8, 12), step=1)
    second = train(data, judged(more, base_step=1, batch_id="batch-ffff"), more)

    def updates(result: TrainingResult) -> int:
        state = torch.load(Path(str(result.checkpoint_path)) / "optimizer.pt", weights_only=True)
        return int(state["state"][0]["step"])

    assert second.step == 2
    assert updates(second) > updates(first) > 0


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(entropy_floor=9.0), "its entropy"),
        (Limits(most_invalid=-1.0), "answers that are refused"),
    ],
)
def test_a_collapsed_policy_never_becomes_a_step(data: Path, batch: list[Episode], limits: Limits, what: str) -> None:
    with pytest.raises(CollapsedPolicy, match=what):
        train(data, judged(batch), batch, replace(QUICK, cpu=replace(QUICK.cpu, limits=limits)))
    assert steps(data) == ["0000"]


def test_passes_end_when_the_policy_has_gone_far_enough(data: Path, batch: list[Episode]) -> None:
    limits = Limits(kl_ceiling=0.0)
    result = train(data, judged(batch), batch, replace(QUICK, cpu=replace(QUICK.cpu, limits=limits, holdout=0.0)))
    record = json.loads((Path(str(result.checkpoint_path)) / "training.json").read_text())
    assert len(record["passes"]) == 1
    assert "above 0.0" in record["stopped"]


def test_a_gone_base_step_is_named(data: Path, batch: list[Episode]) -> None:
    shutil.rmtree(GRPOTrainingService(data, LINE).checkpoint(0))
    with pytest.raises(MissingCheckpoint, match=r"0000 is missing; restore it"):
        train(data, judged(batch), batch)


@pytest.mark.parametrize("lacks", ["batch_id", "curve", "passes"])
def test_a_step_whose_record_lacks_something_is_named(data: Path, lacks: str) -> None:
    service = GRPOTrainingService(data, LINE)
    path = service.checkpoint(1) / "training.json"
    path.parent.mkdir()
    whole = {"batch_id": BATCH, "parent_step": 0, "curve": [{"update": 0.0}], "passes": [], "best_pass": 0}
    path.write_text(json.dumps({name: value for name, value in whole.items() if name != lacks}))
    manifest = Manifest(BATCH, LINE, 0, (), (), (ManifestGroup("group-1", ("1", "2"), (0.0, 1.0)),))
    with pytest.raises(MissingCheckpoint, match=rf"0001/training\.json is damaged: it lacks '{lacks}'; restore"):
        service.train(manifest, {})


def test_episodes_of_another_step_are_refused(data: Path, batch: list[Episode]) -> None:
    stale = [replace(batch[0], policy=Policy(LINE, 5)), *batch[1:]]
    with pytest.raises(
        MalformedInput, match=r"1 episodes .* were not played by step 0, such as .* by tiny@5; free the batch"
    ):
        train(data, judged(batch), stale)
    assert steps(data) == ["0000"]


def test_episodes_a_few_steps_behind_are_used_where_that_is_allowed(data: Path, batch: list[Episode]) -> None:
    first = train(data, judged(batch), batch)
    manifest = replace(judged(batch, batch_id="batch-aaaa"), base_step=1)
    with pytest.raises(MalformedInput, match="were not played by step 1"):
        train(data, manifest, batch)
    second = train(data, manifest, batch, replace(QUICK, most_stale=1))
    assert (first.step, second.step) == (1, 2)
    assert second.metrics["data/staleness"] == 1.0


def test_a_reward_that_is_no_number_is_refused(data: Path, batch: list[Episode]) -> None:
    rewards = {e.trajectory_id: 0.5 for e in batch} | {batch[3].trajectory_id: float("nan")}
    with pytest.raises(MalformedInput, match=r"lacks a reward in \[0, 1\]; re-judge it"):
        train(data, rewarded(judged(batch), rewards), batch)


def test_episodes_without_logprobs_are_refused(data: Path, batch: list[Episode]) -> None:
    bare = [replace(e, steps=tuple(replace(s, token_ids=(), logprobs=()) for s in e.steps)) for e in batch]
    with pytest.raises(MalformedInput, match="no_logprobs"):
        train(data, judged(batch), bare)


def test_logprobs_that_are_missing_are_computed_where_that_is_asked_for(data: Path, batch: list[Episode]) -> None:
    bare = [replace(e, steps=tuple(replace(s, token_ids=(), logprobs=()) for s in e.steps)) for e in batch[::2]]
    mixed = [*bare, *batch[1::2]]
    window = str(batch[0].window_id)
    excluded = {g.reason for g in build_groups(mixed, window_id=window, group_size=8) if not g.trainable}
    assert excluded == {"no_logprobs"}
    assert all(g.trainable for g in build_groups(mixed, window_id=window, group_size=8, recompute=True))
    result = train(data, judged(batch), mixed, replace(QUICK, recompute=True))
    assert result.metrics["data/recomputed"] == len(bare)
    assert result.curve[0]["loss/importance_ratio"] == pytest.approx(1.0, abs=1e-3)


def test_what_is_recomputed_is_what_was_sampled(data: Path, batch: list[Episode]) -> None:
    bare = [replace(e, steps=tuple(replace(s, token_ids=(), logprobs=()) for s in e.steps)) for e in batch[:8]]
    for was, now in zip(batch, with_logprobs(bare, base_path(data, LINE)).values(), strict=False):
        for sampled, computed in zip(was.steps, now.steps, strict=True):
            assert (sampled.token_ids, sampled.prompt_tokens) == (computed.token_ids, computed.prompt_tokens)
            assert sampled.logprobs == pytest.approx(computed.logprobs, abs=1e-4)


def test_an_answer_that_the_policy_may_not_give_has_no_logprobs(data: Path, batch: list[Episode]) -> None:
    said = replace(batch[0].steps[0], response="buy everything", token_ids=(), logprobs=())
    with pytest.raises(MalformedInput, match=f"trajectory {batch[0].trajectory_id} is not one"):
        with_logprobs([replace(batch[0], steps=(said,))], base_path(data, LINE))


def test_a_missing_episode_is_named(data: Path, batch: list[Episode]) -> None:
    with pytest.raises(MalformedInput, match=f"1 episodes .* such as {batch[0].trajectory_id}"):
        train(data, judged(batch), batch[1:])


def test_a_batch_in_which_all_did_equally_well_makes_no_step(data: Path, batch: list[Episode]) -> None:
    equal = rewarded(judged(batch), {episode.trajectory_id: 0.5 for episode in batch})
    with pytest.raises(MalformedInput, match="in no group do rewards differ"):
        train(data, equal, batch)
    assert steps(data) == ["0000"]


def test_a_manifest_of_another_line_is_refused(data: Path, batch: list[Episode]) -> None:
    with pytest.raises(MalformedInput, match="is of line other"):
        train(data, replace(judged(batch), model_line="other"), batch)
