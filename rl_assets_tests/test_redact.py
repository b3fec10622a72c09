from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.redact import redact

ENV = {
    "WANDB_API_KEY": "0123456789abcdef",
    "RULER_JUDGE_API_KEY": "judge-key-1",
    "DATABASE_URL": "postgresql://babylon:hunter%402!@db/babylon",
    "RL_ASSETS_ALERT_WEBHOOK": "https://hooks.example.org/T0/B0/x1y2z3",
    "RL_ASSETS_A2A_KEY": "join-me-please-1",
    "SHORT_KEY": "ab",
    "HOME": "/root",
}
SECRETS = ["0123456789abcdef", "judge-key-1", "hunter%402!", "hunter@2!", "T0/B0/x1y2z3", "join-me-please-1"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "key={}", "https://x/?k={}&b", "says '{}'", "{}{}"])
def test_a_secret_of_the_environment_never_comes_through(secret: str, around: str):
    whole = ENV["RL_ASSETS_ALERT_WEBHOOK"] if "x1y2z3" in secret else secret
    said = redact(around.replace("{}", whole), ENV)
    assert secret not in said
    assert "***" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://me:pa55word@host/db", "postgresql://me:***@host/db"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("connection password='x y' failed", "connection password='*** y' failed"),
        ("Incorrect API key provided: sk-proj-abcdefghijklmnop", "Incorrect API key provided: ***"),
        ("token ghp_zyxwvutsrqponmlkjihg", "token ***"),
        ("nothing to hide: ab in /root", "nothing to hide: ab in /root"),
    ],
)
def test_what_looks_like_one_goes_too_and_the_rest_stays(text: str, said: str):
    assert redact(text, ENV) == said


@given(st.text(), st.text())
def test_whatever_stands_around_it_a_secret_is_gone(before: str, after: str):
    assert "judge-key-1" not in redact(f"{before}judge-key-1{after}", ENV)
