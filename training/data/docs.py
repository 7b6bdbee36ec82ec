"""Data Docs: what Great Expectations draws of the merged result and of its suite, as pages that open offline."""

import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.contract import Counts, validated
from training.data.rules import rules
from training.data.settings import ValidationSettings

if TYPE_CHECKING:
    from training.data.expectations import Broken, Report

_NAME = "the contract of the data"
_REMOTE = re.compile(r"<script.*?</script>|<link[^>]*>|<img[^>]*>|<footer.*?</footer>|url\([^)]*\)", re.DOTALL)
_HREF = re.compile(r'href="[^"#][^"]*"')
_STYLE = """<style>body{font:15px/1.5 sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}
td.n{text-align:right}.stop{color:#b00020;font-weight:bold}.tell{color:#8a5a00}
.card,form,nav ol,a[data-toggle],.ge-navigation-sidebar-container{display:none}.sticky-top{height:auto!important}
.fa-check-circle::before{content:"\\2713";color:#1b7f3b}.fa-times::before{content:"\\2717";color:#b00020}
.fa-exclamation-triangle::before{content:"!";color:#8a5a00}
</style>"""
_PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Data Docs</title></head>
<body><h1>Data Docs</h1>{body}
<p>Drawn by Great Expectations: <a href="result.html">the result of every expectation</a> and
<a href="suite.html">the contract (the suite)</a>. These pages hold no text of the data.</p></body></html>"""
_LEADS = {
    "stop": "stop: more than {share} of the rows stop the run",
    "quarantine": "quarantine: such rows are put aside; more than {share} of the rows stop the run",
    "warn": "warn: more than {share} of the rows are told",
}


def write_docs(
    counted: Mapping[tuple[str, str], Counts], settings: ValidationSettings, report: "Report", docs: Path
) -> Any:
    """Draw ``index.html``, ``result.html`` and ``suite.html`` into ``docs``; return the merged result."""
    from great_expectations.render.renderer.page_renderer import (
        ExpectationSuitePageRenderer,
        ValidationResultsPageRenderer,
    )
    from great_expectations.render.view import DefaultJinjaPageView

    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir(parents=True)
    result, suite = merged(counted, settings, report)
    view: Any = DefaultJinjaPageView()
    draw: Any = ValidationResultsPageRenderer()
    draw_suite: Any = ExpectationSuitePageRenderer()
    _save(docs / "result.html", view.render(draw.render(result)))
    _save(docs / "suite.html", view.render(draw_suite.render(suite)))
    _save(docs / "index.html", _PAGE.format(body=_index(settings, report)))
    return result


def merged(
    counted: Mapping[tuple[str, str], Counts], settings: ValidationSettings, report: "Report"
) -> tuple[Any, Any]:
    """One ExpectationSuiteValidationResult over all segments, and its suite.

    Rows of all segments of a part are added up. An expectation of a rule holds where at most ``at_most`` of the part's rows
    break it; rows whose fact is null count as rows that pass.
    """
    import great_expectations as gx
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

    results = [*_of_rules(counted, settings, report), *_of_the_set(settings, report)]
    suite = gx.ExpectationSuite(name=_NAME)
    for item in results:
        suite.expectations.append(item.expectation_config.to_domain_obj())
    good = sum(bool(item.success) for item in results)
    now = datetime.now(UTC)
    result = ExpectationSuiteValidationResult(
        success=good == len(results),
        results=results,
        suite_name=_NAME,
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": good,
            "unsuccessful_expectations": len(results) - good,
            "success_percent": 100 * good / len(results),
        },
        meta={
            "great_expectations_version": gx.__version__,
            "batch_spec": {"data_asset_name": "all rows of " + ", ".join(report.parts)},
            "run_id": {"run_name": "validate", "run_time": now.isoformat()},
            "validation_time": now.isoformat(),
        },
    )
    return result, suite


def _of_rules(counted: Mapping[tuple[str, str], Counts], settings: ValidationSettings, report: "Report") -> list[Any]:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.expectations import ExpectColumnValuesToBeBetween
    from great_expectations.expectations.metadata_types import FailureSeverity as Severity

    severity = {"stop": Severity.CRITICAL, "quarantine": Severity.WARNING, "warn": Severity.INFO}
    results = []
    for rule in rules(settings):
        for part, told in report.parts.items():
            judged, count = told.judged[rule.name], counted[part, rule.name]
            valued = count.rows - count.missing
            share = count.unexpected / count.rows if count.rows else 0.0
            expectation = ExpectColumnValuesToBeBetween(
                column=rule.name,
                min_value=rule.bounds.minimum,
                max_value=rule.bounds.maximum,
                mostly=1.0 - judged.at_most,
                severity=severity[judged.action],
                description=f"{part}: {rule.sentence} [{_leads_to(judged)}]",
                meta={"rule": rule.name, "part": part, "action": judged.action, "at_most": judged.at_most},
            )
            result = {
                "observed_value": f"{count.unexpected:,} of {count.rows:,} rows break it ({_percent(share)})",
                "element_count": count.rows,
                "missing_count": count.missing,
                "missing_percent": 100 * count.missing / count.rows if count.rows else 0.0,
                "unexpected_count": count.unexpected,
                "unexpected_percent": 100 * share,
                "unexpected_percent_total": 100 * share,
                "unexpected_percent_nonmissing": 100 * count.unexpected / valued if valued else 0.0,
                "partial_unexpected_list": [],
            }
            results.append(
                ExpectationValidationResult(
                    success=share <= judged.at_most, expectation_config=expectation.configuration, result=result
                )
            )
    return results


def _leads_to(judged: "Broken") -> str:
    if judged.action == "quarantine" and judged.at_most == 1:
        return "quarantine: such rows are put aside"
    return _LEADS[judged.action].format(share=_percent(judged.at_most))


def _of_the_set(settings: ValidationSettings, report: "Report") -> list[Any]:
    """Expectations about the whole: limits and measures, judged by Great Expectations over a frame of one row."""
    import pandas as pd
    from great_expectations.expectations import ExpectColumnMaxToBeBetween
    from great_expectations.expectations.metadata_types import FailureSeverity as Severity

    asked: list[tuple[str, float, float | None, float | None, str, str]] = []
    for part, told in report.parts.items():
        sentence = f"At most {_percent(settings.max_quarantined)} of the rows are faulty (validation.max_quarantined)."
        asked.append((f"{part}: faulty rows", told.faulty_share, None, settings.max_quarantined, sentence, "stop"))
    learnt, held = report.learnt, report.held_out
    least = f"At least {settings.min_records:,} pairs or labelled completions are left to train on."
    asked.append(("pairs or labelled completions to train on", learnt, settings.min_records, None, least, "stop"))
    enough = "A pair, or labelled completions of both labels, is held out."
    asked.append(("held-out pairs or labelled completions", held, 1, None, enough, "stop"))
    for item in report.measures:
        name = f"{item.of}: {item.name}"
        asked.append((name, item.value, item.minimum, item.maximum, item.sentence, item.action))
    expectations = [
        ExpectColumnMaxToBeBetween(
            column=name,
            min_value=low,
            max_value=high,
            severity=Severity.CRITICAL if action == "stop" else Severity.INFO,
            description=f"{sentence} [{action}]",
            meta={"place": place},
        )
        for place, (name, _, low, high, sentence, action) in enumerate(asked)
    ]
    frame = pd.DataFrame([[float(value) for _, value, *_ in asked]], columns=[name for name, *_ in asked])
    results = validated(frame, expectations)
    for item in results:
        item.result["observed_value"] = float(item.result["observed_value"])  # GX draws no NumPy number
    return results


# ------------------------------------------------------------------------------------------------ pages


def _index(settings: ValidationSettings, report: "Report") -> str:
    """What a person wants first: what stopped the run, the counts, and each broken rule with its share."""
    body = ""
    for title, style, texts in (("The run is stopped", "stop", report.refusals), ("Warnings", "tell", report.warnings)):
        if texts:
            body += f'<h2 class="{style}">{title}</h2><ul>{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'
    counts = [
        [name, *(f"{n:,}" for n in (part.rows, part.kept, part.kept_train, part.kept_holdout, part.quarantined))]
        for name, part in report.parts.items()
    ]
    body += "<h2>Rows</h2>" + _table(["data", "rows", "kept", "train", "holdout", "quarantined"], counts)
    for name, part in report.parts.items():
        broken = [
            [rule.name, rule.sentence, told.action, f"{told.count:,}", _percent(told.share), _percent(told.at_most)]
            for rule in rules(settings)
            if (told := part.judged[rule.name]).count
        ]
        body += f"<h2>Rules that rows of {escape(name)} break</h2>"
        heads = ["rule", "what holds of a good row", "action", "rows", "share", "allowed"]
        body += _table(heads, broken) if broken else "<p>None.</p>"
    numbers = [
        [item.name, item.of, f"{item.value:.3g}", item.allowed, item.action, "" if item.within else "out of bounds"]
        for item in report.measures
    ]
    body += "<h2>The whole set</h2>" + _table(["measure", "of", "value", "allowed", "action", ""], numbers)
    return body


def _table(heads: list[str], rows: list[list[str]]) -> str:
    number = re.compile(r"[\d.,e+-]+%?$")
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    for row in rows:
        lines.append("".join(f"<td{' class=n' if number.match(cell) else ''}>{escape(cell)}</td>" for cell in row))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _save(path: Path, text: str) -> None:
    """Without scripts, styles and images from elsewhere, so that the page opens offline and calls nobody."""
    if path.name != "index.html":
        text = _HREF.sub('href="suite.html"', _REMOTE.sub("", text))
    path.write_text(text.replace("</head>", f"{_STYLE}</head>", 1), encoding="utf-8")


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"
