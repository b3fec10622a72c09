"""Training at W&B, over HTTP on loopback: whatever the network does, a batch is trained once and never lost."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from rl_assets.errors import (
    ConfigurationError,
    LedgerConflict,
    MalformedInput,
    MissingCheckpoint,
    ServiceError,
    UnknownOutcome,
)
from rl_assets.registry.checkpoints import RemoteCheckpoint, checkpoint_digest
from rl_assets.registry.models import (
    get_latest_rl_model,
    get_model,
    list_models,
    promote,
    register_base,
    register_candidate,
    reject,
    rollback,
)
from rl_assets.settings import ServerlessSettings
from rl_assets.store.episodes import read_episodes
from rl_assets.store.ledger import Batch, advance_batch, batches, get_batch
from rl_assets.training.art_serverless import watched_backend
from rl_assets.training.manifest import Manifest
from rl_assets.training.reconcile import settle
from rl_assets.training.remote_models import ensure_remote_base
from rl_assets.training.result import TrainingResult
from rl_assets.training.serverless import ServerlessTrainingService
from rl_assets.training.trigger import Look, Runs, look, record_failure
from rl_assets.training.wandb_api import ASKING_SECONDS, WandbApi
from rl_assets_tests.registry.made import evaluated
from rl_assets_tests.store.made import SAMPLE
from rl_assets_tests.store.waiting import LINE, ids_of, waiting
from rl_assets_tests.training.wandb_server import BASE, KEY, LoopbackWandb, Model

HERE = f"wandb-artifact:///market-agents/rl-assets/{LINE}"
WINDOWS = [f"2026-11-23T{hour:02}:00" for hour in range(24)]


@pytest.fixture
def batch(conn: psycopg.Connection, wandb: LoopbackWandb) -> Batch:
    """A batch of four episodes, claimed on top of step 0 of a line at W&B."""
    base = ensure_remote_base(ServerlessSettings.from_env(), LINE)
    register_base(conn, LINE, base.path, base.digest, metrics=base.metrics)
    waiting(conn, 4, window=WINDOWS[0])
    found = tick(conn).batch
    assert found is not None
    return found


def tick(conn: psycopg.Connection, *ended: str) -> Look:
    """What the training sensor does, with no run alive."""
    return look(conn, model_line=LINE, minimum=4, runs_of=lambda _: Runs(None, frozenset(ended)))


def run(conn: psycopg.Connection, batch: Batch) -> TrainingResult:
    """What a run of `trained_models` does, and the failure sensor after it."""
    if get_batch(conn, batch.id).state == "reserved":
        advance_batch(conn, batch.id, "training", run_id="r")
    manifest = Manifest.from_json(batch.manifest)
    service = ServerlessTrainingService(conn, LINE, ServerlessSettings.from_env())
    try:
        result = service.train(manifest, read_episodes(conn, manifest.trajectory_ids))
    except Exception as error:
        key = f"{batch.id}:{get_batch(conn, batch.id).attempt}"
        record_failure(conn, batch.id, run_id="r", run_key=key, error=str(error))
        raise
    register_candidate(conn, result)
    if get_batch(conn, batch.id).state != "trained":
        advance_batch(conn, batch.id, "trained", result=result.summary())
    return result


def remote(wandb: LoopbackWandb) -> Model:
    (model,) = wandb.models.values()
    return model


def trained_once(wandb: LoopbackWandb, batch: Batch) -> bool:
    """Whether exactly one training was made of the batch's episodes, and of all of them."""
    return [set(job.trajectories) for job in wandb.jobs] == [ids_of(batch)]


def test_a_batch_is_trained_at_wandb_and_registered_as_its_endpoint_names_it(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    result = run(conn, batch)
    assert (result.step, result.checkpoint_path) == (1, RemoteCheckpoint(f"{HERE}:step1"))
    assert [point["loss/train"] for point in result.curve] == [0.5, 0.4]
    assert result.metrics["loss/entropy"] == pytest.approx(0.8)
    assert trained_once(wandb, batch)
    candidate = get_model(conn, LINE, 1)
    assert (candidate.state, candidate.parent_step) == ("candidate", 0)
    assert checkpoint_digest(candidate.checkpoint_path) == candidate.digest
    shown = conn.execute("""SELECT "storagePath", status FROM trained_models""").fetchall()
    assert shown == [(f"{HERE}:step1", "training")]


def test_what_is_submitted_holds_every_token_with_its_logprob_and_unscaled_rewards(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    run(conn, batch)
    body = wandb.jobs[0].body
    config = body["experimental_config"]
    assert (config["scale_rewards"], config["ppo"], config["learning_rate"]) == (False, True, 5e-6)
    sent = body["trajectory_groups"][0]["trajectories"][0]
    choices = [m for m in sent["messages_and_choices"] if "logprobs" in m]
    tokens = [(t["token"], t["logprob"]) for choice in choices for t in choice["logprobs"]["content"]]
    recorded = [
        (f"token_id:{i}", p) for step in SAMPLE.steps for i, p in zip(step.token_ids, step.logprobs, strict=True)
    ]
    assert tokens == recorded
    assert sorted(t["reward"] for t in body["trajectory_groups"][0]["trajectories"])[0] >= 0.0


def test_training_a_trained_batch_again_asks_nobody(conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch):
    first = run(conn, batch)
    wandb.asking = 500
    assert run(conn, batch) == first
    assert trained_once(wandb, batch)


@pytest.mark.parametrize("how", ["lose the answer", "accept and answer 500"])
def test_a_lost_answer_is_settled_by_the_checkpoint_that_came(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, how: str
):
    wandb.on_submit, wandb.ends = [how], False
    with pytest.raises(UnknownOutcome, match=f"nobody knows yet whether {batch.id} was trained"):
        run(conn, batch)
    assert get_batch(conn, batch.id).state == "unknown"
    for _ in range(2):
        found = tick(conn, f"{batch.id}:1")
        assert found.run_key is None
        assert f"{batch.id} stays unknown: no answer came to the submission of" in found.reason
    with pytest.raises(UnknownOutcome):
        run(conn, batch)
    wandb.finish(wandb.jobs[0])
    found = tick(conn, f"{batch.id}:1")
    assert found.reason.endswith(f"step 1 of market-agents/rl-assets/{LINE} came of it; it is registered as step 1")
    assert get_batch(conn, batch.id).state == "trained"
    assert get_model(conn, LINE, 1).batch_id == batch.id
    assert tick(conn, f"{batch.id}:1").run_key == f"{batch.id}:1:after-1"
    assert run(conn, batch).step == 1
    assert trained_once(wandb, batch)


def test_a_submission_that_is_accepted_and_times_out_is_not_repeated(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SERVERLESS_REQUEST_SECONDS", "1")
    wandb.on_submit = ["hang"]
    # The checkpoint is there by the time the run gives up waiting for the answer: the run itself sees it.
    assert run(conn, batch).step == 1
    assert trained_once(wandb, batch)


def test_an_answer_that_never_came_and_never_meant_anything_waits_for_a_person(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    wandb.on_submit = ["500"]
    with pytest.raises(UnknownOutcome):
        run(conn, batch)
    assert "rl-assets batches settle --not-trained" in tick(conn, f"{batch.id}:1").reason
    assert wandb.submitted == 1
    assert get_batch(conn, batch.id).state == "unknown"


@pytest.mark.parametrize(
    ("status", "words"), [(401, "set WANDB_API_KEY"), (402, "quota"), (403, "quota"), (429, "quota"), (422, "422")]
)
def test_a_refused_submission_fails_at_once_and_is_tried_again(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, status: int, words: str
):
    wandb.on_submit = [str(status)]
    with pytest.raises(ServiceError, match=words) as caught:
        run(conn, batch)
    assert KEY not in str(caught.value)
    assert get_batch(conn, batch.id).state == "failed"
    assert KEY not in str(get_batch(conn, batch.id))
    again = tick(conn, f"{batch.id}:1")
    assert again.run_key == f"{batch.id}:2"
    assert run(conn, batch).step == 1
    assert trained_once(wandb, batch)


def test_without_a_connection_nothing_was_submitted(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SERVERLESS_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ServiceError, match="could not be asked"):
        run(conn, batch)
    assert get_batch(conn, batch.id).state == "failed"


def test_a_submission_that_found_nobody_listening_is_tried_again(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    def elsewhere(settings: ServerlessSettings, *hooks: Any) -> Any:
        return watched_backend(replace(settings, base_url="http://127.0.0.1:9/v1"), *hooks)

    with monkeypatch.context() as patch:
        patch.setattr("rl_assets.training.art_serverless.watched_backend", elsewhere)
        with pytest.raises(ServiceError, match="nothing was submitted"):
            run(conn, batch)
    assert get_batch(conn, batch.id).state == "failed"
    assert tick(conn, f"{batch.id}:1").run_key == f"{batch.id}:2"
    assert run(conn, batch).step == 1


def test_a_key_that_is_not_valid_is_said_and_not_shown(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "another")
    with pytest.raises(ServiceError, match=r"does not accept the key \(401"):
        run(conn, batch)
    assert (wandb.submitted, get_batch(conn, batch.id).state) == (0, "failed")


def test_a_run_that_dies_after_the_submission_leaves_the_batch_unknown_and_not_failed(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    wandb.ends = False

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("art.serverless.client.TrainingJobEvents.list", die)
    with pytest.raises(KeyboardInterrupt):
        run(conn, batch)
    assert get_batch(conn, batch.id).state == "training"
    assert "is unknown" in tick(conn, f"{batch.id}:1").reason
    assert "has not ended, after 0 updates" in tick(conn, f"{batch.id}:1").reason
    wandb.finish(wandb.jobs[0])
    tick(conn, f"{batch.id}:1")
    assert get_batch(conn, batch.id).state == "trained"
    assert trained_once(wandb, batch)


def test_a_training_that_failed_at_wandb_is_tried_again(conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch):
    wandb.fails = "out of memory"
    with pytest.raises(ServiceError, match="the training failed: out of memory"):
        run(conn, batch)
    assert get_batch(conn, batch.id).state == "failed"
    wandb.fails = ""
    assert tick(conn, f"{batch.id}:1").run_key == f"{batch.id}:2"
    assert run(conn, batch).step == 1
    assert [set(job.trajectories) for job in wandb.jobs] == [ids_of(batch)] * 2
    assert len(remote(wandb).checkpoints) == 1


def test_a_failure_that_is_told_later_is_entered_by_the_tick(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    slow(conn, wandb, batch)
    wandb.finish(wandb.jobs[0], failure="preempted")
    assert tick(conn, f"{batch.id}:1").reason == f"{batch.id} is failed: W&B says that the training failed: preempted"
    assert tick(conn, f"{batch.id}:1").run_key == f"{batch.id}:2"


def test_slow_events_leave_the_batch_to_the_ticks(conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch):
    slow(conn, wandb, batch)
    wandb.asking = 500
    assert "stays unknown: W&B answered 500" in tick(conn, f"{batch.id}:1").reason
    wandb.asking = 401
    said = tick(conn, f"{batch.id}:1").reason
    assert "set WANDB_API_KEY" in said
    assert KEY not in said
    wandb.asking = 0
    wandb.finish(wandb.jobs[0])
    tick(conn, f"{batch.id}:1")
    kept = get_batch(conn, batch.id)
    assert kept.state == "trained"
    assert kept.result is not None
    assert len(kept.result["curve"]) == 2
    assert trained_once(wandb, batch)


def test_a_checkpoint_that_is_listed_after_its_job_has_ended_is_waited_for(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    wandb.late = True
    with pytest.raises(UnknownOutcome, match="has ended and its checkpoint is not listed yet"):
        run(conn, batch)
    assert "not listed yet" in tick(conn, f"{batch.id}:1").reason
    wandb.step(remote(wandb))
    tick(conn, f"{batch.id}:1")
    assert get_batch(conn, batch.id).state == "trained"
    assert trained_once(wandb, batch)


def slow(conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch) -> None:
    """Submit the batch to a job whose events do not come before the run gives up."""
    wandb.ends = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVERLESS_TRAINING_SECONDS", "1")
        with pytest.raises(UnknownOutcome, match="has not ended"):
            run(conn, batch)


def test_a_step_that_somebody_else_made_meanwhile_is_not_taken_for_ours(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    slow(conn, wandb, batch)
    wandb.step(remote(wandb))
    wandb.finish(wandb.jobs[0])
    reason = tick(conn, f"{batch.id}:1").reason
    assert "steps 1 and 2 of" in reason
    assert "somebody else trains it too" in reason
    assert get_batch(conn, batch.id).state == "unknown"
    assert len(list_models(conn, LINE)) == 1


def test_nothing_is_submitted_on_top_of_a_step_of_somebody_else(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    wandb.step(remote(wandb))
    with pytest.raises(LedgerConflict, match=r"step 1 of .* came from nobody here"):
        run(conn, batch)
    assert (wandb.submitted, get_batch(conn, batch.id).state) == (0, "failed")


def test_two_runs_of_one_batch_submit_once(conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch):
    slow(conn, wandb, batch)
    conn.execute("UPDATE rl_assets.batches SET state = 'training' WHERE id = %s", [batch.id])
    wandb.finish(wandb.jobs[0])
    assert run(conn, batch).step == 1
    assert trained_once(wandb, batch)


def test_a_candidate_that_was_turned_down_is_not_trained_upon(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, caplog: pytest.LogCaptureFixture
):
    run(conn, batch)
    evaluated(conn, get_model(conn, LINE, 1), promote=False)
    for state in ("evaluated", "rejected"):
        advance_batch(conn, batch.id, state)
    reject(conn, LINE, 1)
    waiting(conn, 4, window=WINDOWS[1])
    second = tick(conn).batch
    assert second is not None
    with caplog.at_level(logging.INFO):
        result = run(conn, second)
    assert "[1] of market-agents/rl-assets" in caplog.text
    # W&B counts on from what is left, so that its step 1 is made twice; the registry's steps are never used again.
    assert [c["step"] for c in remote(wandb).checkpoints] == [1]
    assert (result.step, result.checkpoint_path) == (2, RemoteCheckpoint(f"{HERE}:step1"))
    assert [(m.step, m.parent_step) for m in list_models(conn, LINE)] == [(2, 0), (1, 0), (0, None)]
    old = get_model(conn, LINE, 1)
    assert checkpoint_digest(old.checkpoint_path) != old.digest


def test_a_candidate_goes_live_and_back_only_while_wandb_has_it(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    run(conn, batch)
    evaluated(conn, get_model(conn, LINE, 1), promote=True)
    kept = remote(wandb).checkpoints.copy()
    remote(wandb).checkpoints.clear()
    with pytest.raises(MissingCheckpoint, match="is not at W&B any more"):
        promote(conn, LINE, 1)
    remote(wandb).checkpoints.extend(kept)
    promote(conn, LINE, 1)
    live = get_latest_rl_model(conn, LINE)
    assert (live.step, live.checkpoint_path) == (1, f"{HERE}:step1")
    rollback(conn, LINE, "a test")
    assert get_latest_rl_model(conn, LINE).checkpoint_path == f"{HERE}:step0"


def test_a_line_at_wandb_stays_on_its_base_model(wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVERLESS_BASE_MODEL", "another/model")
    with pytest.raises(ConfigurationError, match=f"stands on {BASE}"):
        ensure_remote_base(ServerlessSettings.from_env(), LINE)


def test_without_a_key_an_unknown_batch_waits_and_says_so(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    slow(conn, wandb, batch)
    monkeypatch.delenv("WANDB_API_KEY")
    assert "WANDB_API_KEY is not set" in tick(conn, f"{batch.id}:1").reason
    assert [b.state for b in batches(conn, model_line=LINE)] == ["unknown"]


@pytest.mark.parametrize("came", [True, False])
def test_a_person_settles_what_the_evidence_cannot(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, came: bool
):
    slow(conn, wandb, batch)
    wandb.step(remote(wandb))
    wandb.finish(wandb.jobs[0])
    unknown = get_batch(conn, batch.id)
    with pytest.raises(LedgerConflict, match="those that did: 1, 2"):
        settle(conn, unknown, 3)
    said = settle(conn, unknown, 2 if came else None)
    assert "a person says" in said
    if came:
        assert get_batch(conn, batch.id).state == "trained"
        assert get_model(conn, LINE, 2).checkpoint_path == f"{HERE}:step2"
    else:
        assert tick(conn, f"{batch.id}:1").run_key == f"{batch.id}:2"
    with pytest.raises(LedgerConflict, match="only a batch that is unknown"):
        settle(conn, get_batch(conn, batch.id), None)


def test_a_tick_does_not_wait_for_a_wandb_that_is_silent(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    slow(conn, wandb, batch)
    monkeypatch.setenv("SERVERLESS_REQUEST_SECONDS", "1")
    wandb.stalls = "silent"
    assert "stays unknown: W&B could not be asked" in tick(conn, f"{batch.id}:1").reason
    assert ASKING_SECONDS < 60
    assert get_batch(conn, batch.id).state == "unknown"


def test_an_answer_that_comes_byte_by_byte_is_given_up(wandb: LoopbackWandb):
    wandb.stalls = "slow"
    with (
        WandbApi(ServerlessSettings.from_env(), seconds=0.3) as api,
        pytest.raises(ServiceError, match="took too long"),
    ):
        api.checkpoints("model")


def test_a_batch_of_another_line_is_not_submitted(conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch):
    manifest = Manifest.from_json(batch.manifest)
    advance_batch(conn, batch.id, "training")
    service = ServerlessTrainingService(conn, "other", ServerlessSettings.from_env())
    with pytest.raises(MalformedInput, match=f"is of line {LINE} .* trains other; give it to the service of its line"):
        service.train(manifest, read_episodes(conn, manifest.trajectory_ids))
    assert wandb.submitted == 0


def test_a_batch_without_a_spread_of_rewards_is_not_submitted(
    conn: psycopg.Connection, wandb: LoopbackWandb, batch: Batch
):
    manifest = Manifest.from_json(batch.manifest)
    flat = tuple(replace(group, rewards=(0.5,) * len(group.rewards)) for group in manifest.groups)
    advance_batch(conn, batch.id, "training")
    service = ServerlessTrainingService(conn, LINE, ServerlessSettings.from_env())
    with pytest.raises(MalformedInput, match="nothing to learn from"):
        service.train(replace(manifest, groups=flat), read_episodes(conn, manifest.trajectory_ids))
    assert wandb.submitted == 0
