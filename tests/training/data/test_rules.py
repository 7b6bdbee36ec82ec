"""Rules and measures: the same names as the settings, in their order, and sentences that a person understands."""

import re

import numpy as np
import pytest

from training.data.rules import Bounds, action_of, measure_action, measures, rules
from training.data.settings import MeasureSetting, RuleSetting, ValidationSettings

SETTINGS = ValidationSettings()


def fields(kind: type) -> list[str]:
    return [name for name, field in ValidationSettings.model_fields.items() if field.annotation is kind]


def test_the_rules_are_the_settings() -> None:
    assert [rule.name for rule in rules(SETTINGS)] == fields(RuleSetting)
    assert len({rule.fact for rule in rules(SETTINGS)}) == len(rules(SETTINGS))


def test_the_measures_are_the_settings() -> None:
    assert [measure.name for measure in measures(SETTINGS)] == fields(MeasureSetting)


def test_every_sentence_is_one_and_says_its_bound() -> None:
    changed = ValidationSettings(
        max_characters=1234, max_cut=0.25, near_duplicate_from=0.75, max_shortcut=0.85, max_drift=0.5
    )
    told = {item.name: item.sentence for item in (*rules(changed), *measures(changed))}
    assert all(re.fullmatch(r"[A-Z].*\.", sentence, re.DOTALL) for sentence in told.values())
    bounds = {"too_long": "1,234", "cut": "25%", "near_duplicate": "0.75", "first_token": "85%", "drift_label": "0.5"}
    assert all(bound in told[name] for name, bound in bounds.items())


def test_the_licence_rule_says_what_is_allowed() -> None:
    settings = ValidationSettings(use="commercial", licences={"commercial": ("MIT", "CC0-1.0")})
    sentence = next(rule.sentence for rule in rules(settings) if rule.name == "licence")
    assert "commercial" in sentence and "MIT, CC0-1.0" in sentence


def test_actions_and_shares_come_from_the_settings() -> None:
    settings = ValidationSettings.model_validate(
        {"duplicate": "warn", "email": {"action": "quarantine", "at_most": 0.05}, "drift_rows": "stop"}
    )
    assert (action_of(settings, "duplicate").action, action_of(settings, "duplicate").at_most) == ("warn", 0.0)
    assert (action_of(settings, "email").action, action_of(settings, "email").at_most) == ("quarantine", 0.05)
    assert measure_action(settings, "drift_rows") == "stop"
    assert action_of(settings, "phone").at_most == 1.0


@pytest.mark.parametrize(
    ("bounds", "broken", "told"),
    [
        (Bounds(minimum=1), [True, False, False, False], "at least 1"),
        (Bounds(maximum=1), [False, False, True, False], "at most 1"),
        (Bounds(1, 1), [True, False, True, False], "1 to 1"),
        (Bounds(maximum=0.3), [False, True, True, False], "at most 0.3"),
    ],
)
def test_bounds_are_included_and_null_is_within(bounds: Bounds, broken: list[bool], told: str) -> None:
    assert bounds.broken(np.array([0, 1, 1.5, np.nan])).tolist() == broken
    assert str(bounds) == told


def test_a_bound_is_exact_as_it_is_written() -> None:
    """0.1 + 0.2 is more than 0.3 in floats, and the fact 0.3 itself is not."""
    assert Bounds(maximum=0.3).broken(np.array([0.3, 0.1 + 0.2])).tolist() == [False, True]
