"""The language of a sample of the rows."""

import math

import pytest

from tests.training.data.facts.rows import batch, pair
from training.data.facts.language import EVERY, LANGUAGES, Language, number, sampled
from training.data.records import Record

TEXTS = {
    "en": "The weather is fine today, and we shall walk along the river before dinner.",
    "de": "Das Wetter ist heute schön, und wir gehen vor dem Essen am Fluss entlang spazieren.",
    "fr": "Il fait beau aujourd'hui, et nous irons nous promener au bord de la rivière avant le dîner.",
    "es": "Hoy hace buen tiempo y pasearemos junto al río antes de la cena con nuestros amigos.",
    "ru": "Сегодня хорошая погода, и мы погуляем вдоль реки перед ужином.",
    "zh": "今天天气很好。我们晚饭前会沿着河边散步。然后回家休息。明天再去学校上课。",
    "ja": "今日は天気がいいので、夕食の前に川沿いを散歩しましょう。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_language_has_its_number(code: str) -> None:
    assert LANGUAGES[int(number(TEXTS[code]))] == code


def test_every_language_of_the_library_has_one_number() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert len(set(LANGUAGES)) == len(LANGUAGES)
    assert set(LanguageIdentifier.from_model_file(MODEL_FILE).labels) <= set(LANGUAGES)


def test_little_text_has_no_language() -> None:
    assert math.isnan(number("ok 123")) and math.isnan(number(""))


def test_about_one_row_in_thirty_two_is_looked_at_whatever_stands_beside_it() -> None:
    records: list[Record | None] = [pair(TEXTS["de"], TEXTS["de"], "Nein, das ist es nicht.") for _ in range(3200)]
    rows = batch(records)
    found = Language()(rows)["language"]
    looked = [sampled(identity) for identity in rows.ids]
    assert [not math.isnan(value) for value in found] == looked
    assert 60 < sum(looked) < 145  # 3200 / 32 = 100, deviation 9.8
    assert {LANGUAGES[int(value)] for value in found if not math.isnan(value)} == {"de"}
    assert EVERY == 32 and not any(map(math.isnan, found[looked]))


def test_no_record_has_no_language() -> None:
    assert all(map(math.isnan, Language()(batch([None] * 64))["language"]))
