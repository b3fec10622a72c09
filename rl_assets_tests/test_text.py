"""Text of others, made fit for where it goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rl_assets.text import SHORT, printable, storable, whole

ANY = st.text(st.characters())  # halves of surrogate pairs as well
GRIN = "\N{GRINNING FACE}"


@given(ANY)
def test_text_is_whole_at_once_and_can_be_sent(text: str):
    made = whole(text)
    assert made.encode().decode() == made == whole(made)
    assert "\x00" not in storable(text)
    assert storable(text) == made.replace("\x00", "\ufffd")


def test_halves_that_belong_together_are_one_character():
    assert whole("\ud83d\ude00 \ud83d") == f"{GRIN} \ufffd"


@given(ANY)
def test_what_is_repeated_is_one_short_line(text: str):
    made = printable(text)
    assert made.isprintable()
    assert len(made) <= SHORT + 1
    assert made.endswith("…") or len(text) <= SHORT
