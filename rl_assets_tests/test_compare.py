"""`rl-assets compare`, as a person runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from rl_assets.agents.grammar import save_grammar
from rl_assets.agents.prompt import legal_actions
from rl_assets.cli import BAD_INPUT, FAILED, INTERRUPTED, run
from rl_assets.market.babylon.importer import import_babylon
from rl_assets.market.config import WorldConfig
from rl_assets.market.snapshot import save_snapshot
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.registry.models import register_base
from rl_assets.store.episode_files import read_episodes_parquet
from rl_assets_tests.agents.endpoint_server import HOLD, Asked, LoopbackModel, Reply, good, loopback_model, says, status
from rl_assets_tests.market.babylon.made import generated, written
from rl_assets_tests.reports.pages import HOSTILE, Page, worlds

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = worlds(2)
CHOSEN = [option for snapshot, _ in SMALL for option in ("--snapshot", snapshot.id)]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATABASE_URL", "DAGSTER_PG_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path / "data"))
    for world in SMALL:
        save_snapshot(tmp_path / "data" / "snapshots", *world)
    return tmp_path / "data"


@pytest.fixture
def model() -> Iterator[LoopbackModel]:
    with loopback_model() as server:
        yield server


def test_reference_agents_are_compared_and_a_second_run_plays_nothing(data: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["compare", "hold", "oracle", "--first", "800000", "--count", "8", "--siblings", "2"]
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(r"1 │ oracle +│ +16 │ +0 │ [\d.]+ \[[\d.]+, [\d.]+\] │ +1.00", said)
    assert "leaderboard on 8 snapshots of 2 market days: oracle = hold (p 0.5)" in said
    assert "2 market days cannot show a difference among 2 agents" in said
    directory = Path(said.splitlines()[-1].removeprefix("results: ")).parent
    assert directory.parent == data / "comparisons"
    assert Page(directory / "report.html").faults == []
    assert {path.name for path in directory.iterdir()} >= {"episodes.csv", "episodes.parquet", "comparison.json"}
    before = read_episodes_parquet(directory / "episodes.parquet")
    assert run(arguments) == 0
    assert capsys.readouterr().out == said
    assert read_episodes_parquet(directory / "episodes.parquet") == before


def test_an_agent_that_fails_is_in_the_table_with_its_reason_and_the_exit_code(
    data: Path, model: LoopbackModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model.mode = lambda asked: (status(500, "out of [bold]order") if asked.number else good)(asked)
    out = ["--out", str(tmp_path / "out")]
    agents = ["hold", f"openai:m@{model.url}", "--concurrency", "1", "--retries", "0"]
    assert run(["compare", *agents, *CHOSEN, *out]) == FAILED
    said = capsys.readouterr().out
    assert "failed episodes; run the same command again to play them" in said
    assert "500" in said
    assert "out of [bold]order" in " ".join(said.replace("│", " ").split())
    assert re.search(r"│ +- +│ m@127\.0\.0\.1:\d+ │ +0 │ +2 │", said)
    assert (tmp_path / "out" / "report.html").is_file()


def test_text_of_agents_is_harmless_in_the_report(data: Path, model: LoopbackModel, tmp_path: Path):
    model.mode = lambda asked: says(HOSTILE[asked.number % 4])(asked)
    name = "<img src=x onerror=alert(1)>{{ 7*7 }}"
    for place, others in enumerate(([], ["hold"])):
        out = tmp_path / str(place)
        arguments = [*others, "--base-url", model.url, "--model", name, *CHOSEN, "--out", str(out)]
        assert run(["compare", *arguments]) == 0
        page = Page(out / "report.html")
        assert page.faults == []
        assert name in page.text


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_comparison_that_was_stopped_goes_on_with_what_is_missing(
    data: Path, model: LoopbackModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: signal.Signals
):
    reached, never = threading.Event(), threading.Event()

    def second_episode_hangs(asked: Asked) -> Reply:
        if model.episodes() < 2:
            return good(asked)
        reached.set()
        return Reply(wait_for=never)

    model.mode = second_episode_hangs
    agents = [f"openai:m@{model.url}", "hold", "--concurrency", "1"]
    arguments = ["compare", *agents, *CHOSEN, "--out", str(tmp_path / "o")]
    process = subprocess.Popen(
        [sys.executable, "-m", "rl_assets", *arguments], env=dict(os.environ), stderr=subprocess.PIPE, text=True
    )
    try:
        assert reached.wait(120)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        never.set()
    kept = read_episodes_parquet(tmp_path / "o" / "episodes.parquet")
    assert [(e.policy.name, e.snapshot_id) for e in kept] == [
        *(("hold", snapshot.id) for snapshot, _ in SMALL),
        (f"m@{model.host}", SMALL[0][0].id),
    ]
    assert not (tmp_path / "o" / "report.html").exists()
    if how == signal.SIGINT:
        assert (process.returncode, said.strip()) == (INTERRUPTED, "rl-assets: interrupted")
        return
    model.mode, asked = good, len(model.calls)
    assert run(arguments) == 0
    assert len(model.calls) - asked == 6
    assert kept[-1] in read_episodes_parquet(tmp_path / "o" / "episodes.parquet")
    capsys.readouterr()
    assert run([*arguments, "--seed", "1"]) == BAD_INPUT
    assert "holds a comparison with other seed" in capsys.readouterr().err


def test_a_key_goes_to_one_api_and_into_no_file(
    data: Path,
    model: LoopbackModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    model.mode = says(HOLD)
    one = f"openai:m@{model.url}"
    with loopback_model() as other:
        two = f"openai:n@{other.url}"
        assert run(["compare", one, two, *CHOSEN]) == BAD_INPUT
        assert "say which one gets it with --key-env" in capsys.readouterr().err
        assert model.calls == other.calls == []
        arguments = [one, two, *CHOSEN, "--key-env", f"{other.host}=OTHER_KEY", "--out", str(tmp_path / "out")]
        assert run(["compare", *arguments]) == 0
        assert set(other.keys) == {"Bearer sk-other"}
        assert set(model.keys) == {"Bearer none"}
    for path in (tmp_path / "out").iterdir():
        assert b"sk-other" not in path.read_bytes()
    assert "sk-" not in "".join(capsys.readouterr())


def test_checkpoints_of_the_line_and_of_a_directory_play(
    data: Path,
    tmp_path: Path,
    conn: psycopg.Connection,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from rl_assets.training.base import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(end, int)
    assert isinstance(pad, int)
    checkpoint = tmp_path / "checkpoint"
    tokenizer.save_pretrained(checkpoint)
    save_grammar(checkpoint, legal_actions(WorldConfig(ticks=6, markets=2)), "<|end|>")
    build_model(len(tokenizer), end, pad, seed=1).save_pretrained(checkpoint)
    register_base(conn, "babylon-agent", checkpoint, checkpoint_digest(checkpoint), metrics={})
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("DAGSTER_PG_URL", postgres_url)
    assert run(["compare", "model", str(checkpoint), *CHOSEN, "--out", str(tmp_path / "out")]) == 0
    episodes = read_episodes_parquet(tmp_path / "out" / "episodes.parquet")
    assert [str(e.policy) for e in episodes] == ["babylon-agent@0"] * 2 + [str(checkpoint)] * 2
    assert [s.response for e in episodes[:2] for s in e.steps] == [s.response for e in episodes[2:] for s in e.steps]
    capsys.readouterr()
    for name, code, sentence in (
        ("model@7", FAILED, "babylon-agent has no step 7"),
        ("model@x", BAD_INPUT, "write model, or model@3"),
    ):
        assert run(["compare", name, *CHOSEN]) == code
        assert sentence in capsys.readouterr().err


def test_an_imported_snapshot_is_played(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    snapshot, truth = import_babylon(written(tmp_path, generated()))
    save_snapshot(data / "snapshots", snapshot, truth)
    assert run(["compare", "hold", "random", "--snapshot", snapshot.id, "--out", str(tmp_path / "out")]) == 0
    assert "on 1 snapshots of 1 market days" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "name at least one agent"),
        (["zeus"], "'zeus' is no agent: name one of hold"),
        (["openai:http://127.0.0.1:1/v1"], "written like openai:NAME@"),
        (["openai:m@127.0.0.1"], "is not the URL of a server"),
        (["openai:m@http://me:pw@127.0.0.1/v1"], "is not the URL of a server"),
        (["hold", "hold"], "hold is named twice"),
        (["hold", "--model", "m"], "belong together"),
        (["hold", "--first", "5"], "split gate has the seeds 800000 to 899999"),
        (["hold", "--snapshot", "gate-800000-000000000000"], "is missing; run `rl-assets snapshots generate`"),
        (["hold", "--snapshot", "../../etc"], "is not a snapshot id"),
        (["hold", "--key-env", "NOT_SET"], "--key-env names NOT_SET, which is not set"),
        (["hold", "--key-env", "PATH"], "does not say which API gets the key"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_leaves_nothing(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    assert run(["compare", *arguments]) == BAD_INPUT
    error = capsys.readouterr().err
    assert said in error
    assert "pw" not in error
    assert [path.name for path in data.iterdir()] == ["snapshots"]
