"""Files of snapshots: what is written is read again, and what is not a snapshot is refused with a sentence."""

import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.errors import MalformedInput, RlAssetsError
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import load_snapshot, load_truth, load_world, parse_id, parse_snapshot, save_snapshot
from rl_assets_tests.market.wild import world

DEFAULT = WorldConfig()


@given(
    seed=st.integers(0, 799_999),
    config=st.builds(WorldConfig, ticks=st.integers(2, 20), markets=st.integers(0, 3), perps=st.integers(1, 3)),
)
@settings(max_examples=20, deadline=None)
def test_a_saved_world_is_loaded_as_it_was(tmp_path_factory, seed, config):
    root = tmp_path_factory.mktemp("snapshots")
    snapshot, truth = generate("train", seed, config)
    save_snapshot(root, snapshot, truth)
    loaded, loaded_truth = load_snapshot(root, snapshot.id), load_truth(root, snapshot.id)
    assert loaded.to_json() == snapshot.to_json()
    assert loaded.id == snapshot.id
    assert loaded_truth.to_json() == truth.to_json()
    for name in ("crowd", "perp", "funding"):
        assert getattr(loaded, name).dtype == getattr(snapshot, name).dtype == np.int32
        assert getattr(loaded, name).shape == getattr(snapshot, name).shape


def test_saving_again_changes_no_byte_and_leaves_nothing_else(tmp_path):
    snapshot, truth = world(DEFAULT)
    path = save_snapshot(tmp_path, snapshot, truth)
    content = path.read_bytes()
    assert save_snapshot(tmp_path, snapshot, truth) == path
    assert path.read_bytes() == content
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [f"sealed/{snapshot.id}.json", f"{snapshot.id}/public.json"]


def test_the_public_file_holds_no_word_of_the_truth(tmp_path):
    snapshot, truth = world(DEFAULT)
    text = save_snapshot(tmp_path, snapshot, truth).read_text()
    assert set(json.loads(text)) == {
        "format", "split", "seed", "day", "config", "crowd", "perp", "funding", "posts", "truth_digest",
    }  # fmt: skip
    for word in ("latent", "fair", "outcome"):
        assert word not in text


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": "rl-assets.snapshot/2"}, "not in the format"),
        ({"split": "test"}, "not one of split"),
        ({"seed": 800_000}, "not one of split"),
        ({"seed": "0"}, "not one of split"),
        ({"day": 3}, "does not belong to seed"),
        ({"config": {}}, "config keys"),
        ({"config": None}, "not a valid snapshot"),
        ({"crowd": [[5_000] * 3] * 12}, r"crowd must be whole numbers of shape \(13, 3\)"),
        ({"crowd": [[5_000] * 3] * 12 + [[0.5] * 3]}, "crowd must be whole numbers"),
        ({"crowd": [[5_000] * 3] * 12 + [[50, 5_000, 5_000]]}, "crowd leaves 100..9900"),
        ({"crowd": [[5_000] * 3] * 12 + [[5_000]]}, "not a valid snapshot"),
        ({"crowd": None}, "crowd must be whole numbers"),
        ({"perp": [[0]] * 13}, "perp leaves 1"),
        ({"perp": [[2**40]] * 13}, "perp leaves"),
        ({"funding": [[0]] * 13}, "funding must be whole numbers"),
        ({"posts": [[12, 0, "oak", True]]}, "post at tick 12"),
        ({"posts": [[0, 4, "oak", True]]}, "post on instrument 4"),
        ({"posts": [[0, 0, "<b>", True]]}, "post "),
        ({"posts": [[0, 0, "oak", 1]]}, "post "),
        ({"posts": [[0, 0, "oak"]]}, "not a valid snapshot"),
        ({"posts": [[1, 0, "oak", True], [0, 0, "oak", True]]}, "posts are not in order"),
        ({"posts": [[0, 0, "oak", True], [0, 0, "elm", True]]}, "posts are not in order"),
        ({"truth_digest": "abc"}, "truth_digest is not a SHA-256"),
        ({"truth_digest": None}, "truth_digest is not a SHA-256"),
    ],
    ids=str,
)
def test_a_malformed_snapshot_is_refused_with_what_is_wrong(change, fault):
    with pytest.raises(MalformedInput, match=fault) as caught:
        parse_snapshot(world(DEFAULT)[0].to_json() | change, "here.json")
    assert "here.json" in str(caught.value)
    assert "generate" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["split", "seed", "day", "config", "crowd", "perp", "funding", "posts", "truth_digest", "format"]
)
def test_a_snapshot_without_one_of_its_parts_is_refused(name):
    raw = world(DEFAULT)[0].to_json()
    del raw[name]
    with pytest.raises(MalformedInput, match=r"here\.json"):
        parse_snapshot(raw, "here.json")


@pytest.mark.parametrize("raw", [None, [], "text", 3], ids=str)
def test_what_is_no_object_is_no_snapshot(raw):
    with pytest.raises(MalformedInput, match="not in the format"):
        parse_snapshot(raw, "here.json")


def test_a_file_whose_content_is_not_what_its_name_says_is_refused(tmp_path):
    snapshot, truth = world(DEFAULT)
    path = save_snapshot(tmp_path, snapshot, truth)
    raw = json.loads(path.read_text())
    raw["crowd"][3][1] += 1
    path.write_text(json.dumps(raw))
    with pytest.raises(MalformedInput, match=f"not {snapshot.id}; regenerate it"):
        load_snapshot(tmp_path, snapshot.id)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"null", b"[" * 100_000], ids=range(6))
def test_files_that_are_no_json_of_ours_are_refused_with_a_sentence(tmp_path, content):
    snapshot, truth = world(DEFAULT)
    path = save_snapshot(tmp_path, snapshot, truth)
    path.write_bytes(content)
    (tmp_path / "sealed" / f"{snapshot.id}.json").write_bytes(content)
    for load in (load_snapshot, load_truth):
        with pytest.raises(MalformedInput, match="generate"):
            load(tmp_path, snapshot.id)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"latent": [[0.5]]},
        {"latent": [[2_000_000]]},
        {"fair": [[0]]},
        {"fair": "x"},
        {"split": ...},
        {"outcomes": ...},
    ],
    ids=str,
)
def test_a_malformed_truth_is_refused_with_a_sentence(tmp_path, change):
    snapshot, truth = world(DEFAULT)
    save_snapshot(tmp_path, snapshot, truth)
    raw = {k: v for k, v in (truth.to_json() | change).items() if v is not ...}
    (tmp_path / "sealed" / f"{snapshot.id}.json").write_text(json.dumps(raw))
    with pytest.raises(MalformedInput, match="regenerate the snapshot"):
        load_truth(tmp_path, snapshot.id)


def test_a_world_is_loaded_only_with_the_truth_it_was_made_with(tmp_path):
    snapshot, truth = world(DEFAULT)
    save_snapshot(tmp_path, snapshot, truth)
    assert load_world(tmp_path, snapshot.id)[1].digest == truth.digest
    (tmp_path / "sealed" / f"{snapshot.id}.json").write_text(json.dumps(world(DEFAULT, 1)[1].to_json()))
    with pytest.raises(
        MalformedInput, match=f"the sealed truth of {snapshot.id} .* run `rl-assets snapshots generate`"
    ):
        load_world(tmp_path, snapshot.id)


def test_a_missing_file_says_what_to_run(tmp_path):
    snapshot, _ = world(DEFAULT)
    with pytest.raises(MalformedInput, match="rl-assets snapshots generate"):
        load_snapshot(tmp_path, snapshot.id)


@pytest.mark.parametrize("name", ["../../etc/passwd", "train-1-abc", "train-000001-0123456789ab/..", "", "TRAIN"])
def test_only_ids_are_turned_into_paths(tmp_path, name):
    with pytest.raises(MalformedInput, match="is not a snapshot id"):
        load_snapshot(tmp_path, name)


def test_an_id_tells_split_and_seed():
    assert parse_id(world(DEFAULT, 17)[0].id) == ("train", 17)


def test_a_disk_that_refuses_leaves_no_half_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RlAssetsError, match=r"no space left.*free disk space"):
        save_snapshot(tmp_path, *world(DEFAULT))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_ids_are_what_the_registry_and_the_file_system_can_take():
    assert re.fullmatch(r"train-000000-[0-9a-f]{12}", world(DEFAULT)[0].id)


def test_what_a_hash_was_made_of_cannot_be_changed_behind_it():
    snapshot, truth = world(DEFAULT)
    for array in (snapshot.crowd, snapshot.perp, snapshot.funding, truth.latent, truth.fair, truth.outcomes):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
