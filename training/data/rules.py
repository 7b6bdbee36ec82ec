"""What is asked of the data: a ``Rule`` bounds one fact of every row, a ``Measure`` bounds a number about the whole set.

Both are named after the fields of ``ValidationSettings`` and stand in their order; the settings say what a broken one
leads to. The sentences say what holds of good data, with the bound in them, and are what people read in reports, Data
Docs and messages.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from training.data.facts.policy import licences_for
from training.data.settings import MeasureSetting, RuleSetting, ValidationSettings

if TYPE_CHECKING:
    import numpy as np


_SHOWN = 8  # licences that a sentence names


@dataclass(frozen=True)
class Bounds:
    """From ``minimum`` to ``maximum``, both included; None is no bound. NaN (a fact that makes no sense) is in bounds."""

    minimum: float | None = None
    maximum: float | None = None

    def broken(self, values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Whether each value is out of bounds."""
        import numpy as np

        out = np.zeros(len(values), dtype=bool)
        if self.minimum is not None:
            out |= values < self.minimum
        if self.maximum is not None:
            out |= values > self.maximum
        return out

    def __str__(self) -> str:
        low, high = (None if bound is None else f"{bound:g}" for bound in (self.minimum, self.maximum))
        if low is not None and high is not None:
            return f"{low} to {high}"
        return f"at least {low}" if low is not None else f"at most {high}"


@dataclass(frozen=True)
class Rule:
    """Bounds on one fact of a row; ``remedy`` is what a person may do about rows that break it."""

    name: str
    fact: str
    sentence: str
    bounds: Bounds
    remedy: str = "Correct them"


@dataclass(frozen=True)
class Measure:
    """Bounds on a number about a whole part (or, for contamination, about a benchmark)."""

    name: str
    sentence: str
    bounds: Bounds


def action_of(settings: ValidationSettings, name: str) -> RuleSetting:
    """What the rule ``name`` leads to."""
    found = getattr(settings, name)
    assert isinstance(found, RuleSetting)
    return found


def measure_action(settings: ValidationSettings, name: str) -> str:
    """What the measure ``name`` leads to where it is out of bounds: stop or warn."""
    found = getattr(settings, name)
    assert isinstance(found, MeasureSetting)
    return found.action


def _at_most(name: str, fact: str, sentence: str, maximum: float = 0) -> Rule:
    return Rule(name, fact, sentence, Bounds(maximum=maximum))


def _at_least(name: str, fact: str, sentence: str, minimum: float = 1) -> Rule:
    return Rule(name, fact, sentence, Bounds(minimum=minimum))


def rules(settings: ValidationSettings) -> tuple[Rule, ...]:
    """The rules, in the order of the fields that they are named after. Raises Refused for a use without a list of licences."""
    return (*_shape(), *_text(settings), *_again(settings), *_people(), *_policy(settings))


def _shape() -> tuple[Rule, ...]:
    return (
        _at_most("unreadable", "unreadable", "Every line is a record of its file's form."),
        _at_least("empty_prompt", "question_characters", "The prompt's last message says something."),
        _at_least("empty_completion", "shortest_completion", "Every completion says something."),
        _at_most(
            "wrong_roles",
            "wrong_roles",
            "A prompt is an optional system message, then user and assistant in turn, and a user has the last word.",
        ),
        _at_most(
            "too_few_completions",
            "missing_completions",
            "A preference has two completions or more (one is enough where it is labelled), an SFT row one to learn.",
        ),
        _at_most(
            "missing_grades",
            "missing_grades",
            "Where completions of a preference are graded, all of them are, and in the same way.",
        ),
        _at_least("no_preference", "ordered_pairs", "At least one completion is graded above another one."),
        _at_most("identical_completions", "identical_pairs", "No completion is preferred to the same text."),
    )


def _text(settings: ValidationSettings) -> tuple[Rule, ...]:
    return (
        _at_most(
            "control_characters",
            "control_characters",
            "The text has no control characters but tab and line ends.",
        ),
        _at_most(
            "replacement_characters",
            "replacement_characters",
            "The text has no U+FFFD and no half surrogates: signs that text was lost before it came here.",
        ),
        _at_most(
            "repeated_lines",
            "repeated_lines",
            f"At most {settings.max_repeated_lines:.0%} of a text's lines are repetitions of an earlier one.",
            settings.max_repeated_lines,
        ),
        _at_most(
            "too_long",
            "characters",
            f"Prompt and longest completion have at most {settings.max_characters:,} characters.",
            settings.max_characters,
        ),
        _at_most(
            "too_many_tokens",
            "tokens_over",
            "Prompt and longest completion fit into max_tokens; what is longer is cut in training.",
        ),
        _at_most(
            "cut",
            "cut_share",
            f"At most {settings.max_cut:.0%} of a row's tokens are lost by cutting it to max_tokens.",
            settings.max_cut,
        ),
    )


def _again(settings: ValidationSettings) -> tuple[Rule, ...]:
    return (
        _at_most("duplicate", "occurrence", "A record stands once in its part (the first one stays).", 1),
        _at_most(
            "near_duplicate",
            "near",
            f"No earlier record of the part has about the same words (estimated Jaccard similarity of at least "
            f"{settings.near_duplicate_from:g}).",
        ),
        _at_most(
            "contradiction",
            "contradictions",
            "No other record of the same prompt prefers the two completions the other way round.",
        ),
        _at_most("in_holdout", "prompt_in_holdout", "No training record has the prompt of a held-out one."),
        _at_most(
            "contaminated",
            "contaminated",
            f"No benchmark item stands in the text, neither as a whole nor with {settings.contaminated_from:.0%} or more of "
            "its sequences of 13 words.",
            math.nextafter(settings.contaminated_from, 0.0),
        ),
    )


def _people() -> tuple[Rule, ...]:
    return (
        _at_most("email", "email", "The text has no e-mail address."),
        _at_most("phone", "phone", "The text has no telephone number."),
        _at_most("card", "card", "The text has no payment card number (with a valid Luhn digit)."),
        _at_most("iban", "iban", "The text has no bank account number (IBAN with valid check digits)."),
        _at_most("ip_address", "ip_address", "The text has no IP address of a machine."),
        _at_most("api_key", "api_key", "The text has no API key or access token."),
        _at_most("private_key", "private_key", "The text has no private key."),
    )


def _policy(settings: ValidationSettings) -> tuple[Rule, ...]:
    names = licences_for(settings) or ()
    allowed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    licensed = (
        f"The licence is allowed for the use '{settings.use}' ({allowed})."
        if settings.use is not None
        else "The licence is allowed for the use (no validation.use is named, so that none is refused)."
    )
    return (
        replace(
            _at_most("licence", "licence_refused", licensed),
            remedy="Take other data, declare the licence of the source, or allow it in validation.licences",
        ),
        _at_most("no_consent", "no_consent", "Who is named as subject has consented, and a legal basis is stated."),
        _at_most("consent_expired", "consent_expired", "The consent has not expired."),
        _at_most("erased", "erased", "Neither the record nor its subject has been erased before."),
    )


def measures(settings: ValidationSettings) -> tuple[Measure, ...]:
    """The measures, in the order of the fields that they are named after."""
    label, shortcut, drift = settings.min_label_share, settings.max_shortcut, settings.max_drift
    return (
        Measure("label_balance", f"The rarer label has at least {label:.0%} of the ratings.", Bounds(minimum=label)),
        Measure(
            "longer_chosen",
            f"The longer completion is preferred in at most {shortcut:.0%} of the pairs.",
            Bounds(maximum=shortcut),
        ),
        Measure(
            "one_model_chosen",
            f"At most {shortcut:.0%} of the preferences between two models' completions are for one and the same model.",
            Bounds(maximum=shortcut),
        ),
        Measure(
            "first_token",
            f"The first word of a completion tells which one is preferred in at most {shortcut:.0%} of the pairs.",
            Bounds(maximum=shortcut),
        ),
        Measure(
            "contamination",
            f"At most {settings.max_contamination:.1%} of a benchmark's items stand in the training text.",
            Bounds(maximum=settings.max_contamination),
        ),
        *(
            Measure(
                name,
                f"Against the last snapshot {what} has moved by at most {drift:g} (population stability index).",
                Bounds(maximum=drift),
            )
            for name, what in _DRIFTS
        ),
    )


_DRIFTS = (
    ("drift_rows", "the number of rows"),
    ("drift_length", "the length of the texts"),
    ("drift_label", "the mix of labels"),
    ("drift_source", "the mix of sources"),
    ("drift_language", "the mix of languages"),
)
