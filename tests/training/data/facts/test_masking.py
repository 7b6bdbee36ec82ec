"""After masking nothing is found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.facts.planting import CALLED, LOCALES, Planter
from training.data.facts.masking import excerpt, mask
from training.data.facts.people import find

PLANTER = Planter(11)


def planted() -> list[tuple[str, str]]:
    """(value, text around it) of every kind."""
    makers = [PLANTER.email, PLANTER.card, PLANTER.iban, PLANTER.ip, PLANTER.private_key, *PLANTER.keys().values()]
    values = [make() for make in makers for _ in range(10)]
    called = [PLANTER.phone(locale) for locale in LOCALES for _ in range(5)]
    return [(value, PLANTER.place(value)) for value in values] + [(v, PLANTER.place(v, CALLED)) for v in called]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail bob@example.com or call +49 30 1234567", "mail <e-mail> or call <phone>"),
        ("DE89 3704 0044 0532 0130 00 and 4111-1111-1111-1111", "<IBAN> and <card>"),
        ("at 93.184.216.34 since 1999", "at <IP address> since ####"),
        ("key: AKIAIOSFODNN7EXAMPLE.", "key: <secret>."),
        ("x -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\n-----END PRIVATE KEY----- y", "x <secret> y"),
        ("nothing here", "nothing here"),
        ("me@home is no address", "<e-mail> is no address"),
    ],
)
def test_each_kind_has_its_name(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_after_masking_nothing_is_found_nor_left() -> None:
    for value, text in planted():
        masked = mask(text)
        assert find(masked) == [] and not any(c.isdigit() for c in masked), (text, masked)
        assert value not in masked
        assert mask(masked) == masked


SIGNS = [" ", "\n", "://", ":", "@", "x", "=", '"', "\u0663"]
PIECES = st.sampled_from(
    [*SIGNS, "a@b.co", "+49 30 1234567", "password=", "Hu7!xkWq2", "sk-", "A1b2C3d4E5f6G7h8I9j0K", "4111111111111111"]
)


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=80))
def test_masking_is_final(text: str) -> None:
    masked = mask(text)
    assert find(masked) == [] and mask(masked) == masked and "@" not in masked


def test_an_excerpt_is_short_and_on_one_line() -> None:
    assert excerpt("a\x00b\n\tc 7") == "a b c #"
    long = excerpt("word " * 100)
    assert len(long) == 80 and long.endswith("…")
    assert excerpt("x" * 80) == "x" * 80


def test_an_excerpt_shows_nothing_of_what_is_cut() -> None:
    # The address begins before the cut and its '@' stands behind it.
    assert "secretname" not in excerpt("\n" * 3990 + " secretname" + "x" * 60 + "@example.com")
    for value, text in planted():
        shown = excerpt(text)
        assert len(shown) <= 80 and value not in shown and find(shown) == []
        assert not any(c.isdigit() for c in shown)


@given(st.text(max_size=500))
def test_any_text_has_an_excerpt(text: str) -> None:
    shown = excerpt(text)
    assert len(shown) <= 80 and shown.isprintable() and find(shown) == []
