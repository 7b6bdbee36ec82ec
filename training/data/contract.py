"""The contract: the rules over the profile as one Great Expectations suite, and its Data Docs, which open offline.

``contract`` counts the failing rows per rule on its own, so that validation can hold its counts against them. Great
Expectations is imported only when it is called.
"""

import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from training.data.profile import PARTS, Profile, rules
from training.settings import ValidationSettings

_REMOTE = re.compile(r"<script.*?</script>|<link[^>]*>|<img[^>]*>|<footer.*?</footer>|url\([^)]*\)", re.DOTALL)
_STYLE = """<style>body{font:15px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}
.card,form,nav ol,.ge-navigation-sidebar-container{display:none}.sticky-top{height:auto!important}
.fa-check-circle::before{content:"\\2713"}.fa-times::before{content:"\\2717"}.fa-exclamation-triangle::before{content:"!"}
</style>"""
_INDEX = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Data Docs</title></head>
<body><h1>Data Docs</h1><p>Drawn by Great Expectations; self-contained.</p><ul>{links}</ul></body></html>"""


def contract(found: Profile, settings: ValidationSettings, docs: Path) -> dict[str, int]:
    """Judge the profile by the suite, draw Data Docs into ``docs``, and count the failing rows per rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies, at import and while drawing
        return _contract(found, settings, docs)


def _contract(found: Profile, settings: ValidationSettings, docs: Path) -> dict[str, int]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the package is imported
    import great_expectations as gx
    from great_expectations.checkpoint import UpdateDataDocsAction
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    shutil.rmtree(docs, ignore_errors=True)
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        data_docs_sites={"alignmill": site},
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    frame = _frame(found)
    suite = context.suites.add(suite_of(settings, [part for part in PARTS if f"faulty_{part}" in frame]))
    asset = context.data_sources.add_pandas("snapshots").add_dataframe_asset("profile")
    batch = asset.add_batch_definition_whole_dataframe("every row")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name="records", data=batch, suite=suite))
    checkpoint = gx.Checkpoint(
        name="records",
        validation_definitions=[definition],
        actions=[UpdateDataDocsAction(name="docs")],
        result_format={"result_format": "BASIC", "partial_unexpected_count": 0},
    )
    outcome = context.checkpoints.add(checkpoint).run(
        batch_parameters={"dataframe": frame}, run_id=RunIdentifier(run_name="validate")
    )
    make_self_contained(docs)
    (result,) = outcome.run_results.values()
    metas = [(item.expectation_config.meta if item.expectation_config else None) or {} for item in result.results]
    return {
        meta["rule"]: int(item.result["unexpected_count"])
        for meta, item in zip(metas, result.results, strict=True)
        if "rule" in meta
    }


def suite_of(settings: ValidationSettings, parts: list[str]) -> Any:
    """The contract as one ExpectationSuite: an expectation per rule, and the limits on the whole."""
    import great_expectations as gx
    from great_expectations.expectations.metadata_types import FailureSeverity as Severity

    expect = gx.expectations
    share = settings.max_quarantined
    tolerated = {"stop": 1.0, "quarantine": 1.0 - share, "warn": 0.0}
    severity = {"stop": Severity.CRITICAL, "quarantine": Severity.WARNING, "warn": Severity.INFO}
    suite = gx.ExpectationSuite(name="records")
    suite.add_expectation(expect.ExpectTableRowCountToBeBetween(min_value=1, description="There are records."))
    for rule in rules(settings):
        action = getattr(settings, rule.name)
        mostly = 0.0 if rule.name == "in_holdout" and action == "quarantine" else tolerated[action]
        suite.add_expectation(
            expect.ExpectColumnValuesToBeBetween(
                column=rule.fact,
                min_value=rule.minimum,
                max_value=rule.maximum,
                mostly=mostly,
                severity=severity[action],
                description=f"{rule.name} ({action}): {rule.sentence}",
                meta={"rule": rule.name, "action": action},
            )
        )
    for part in parts:
        text = f"At most {share:.1%} of the rows of '{part}' are faulty (validation.max_quarantined)."
        mean = expect.ExpectColumnMeanToBeBetween(column=f"faulty_{part}", max_value=share, description=text)
        suite.add_expectation(mean)
    for column, least, text in (
        ("training_pairs", settings.min_records, f"At least {settings.min_records} pair(s) are left to train on."),
        ("holdout_pairs", 1, "At least one pair is held out."),
    ):
        suite.add_expectation(expect.ExpectColumnSumToBeBetween(column=column, min_value=least, description=text))
    return suite


def _frame(found: Profile) -> Any:
    """The facts and what follows from them, as numbers only."""
    table = found.table
    frame = table.drop(columns=["id", "source", "split", "part"])
    for part in table["part"].unique():
        frame[f"faulty_{part}"] = found.faulty.astype("float64")
        frame.loc[table["part"] != part, f"faulty_{part}"] = float("nan")
    pairs = table["pairs"].fillna(0) * ~found.quarantined
    frame["training_pairs"] = pairs * (table["split"] == "train")
    frame["holdout_pairs"] = pairs * (table["split"] == "holdout")
    return frame


def make_self_contained(docs: Path) -> None:
    """Take scripts, styles and images from elsewhere out of the pages, so that they open offline and call nobody.

    The index is one of ours: that of Great Expectations is empty without scripts.
    """
    pages = sorted((page for page in docs.rglob("*.html") if page.name != "index.html"), reverse=True)
    names = {"validations": "Validation result", "expectations": "The contract (expectation suite)"}
    links = [(page.relative_to(docs), names.get(page.relative_to(docs).parts[0], page.stem)) for page in pages]
    items = "".join(f'<li><a href="{path.as_posix()}">{name}</a></li>' for path, name in links)
    (docs / "index.html").write_text(_INDEX.format(links=items), encoding="utf-8")
    for page in [docs / "index.html", *pages]:
        text = _REMOTE.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</head>", f"{_STYLE}</head>", 1), encoding="utf-8")
    shutil.rmtree(docs / "static", ignore_errors=True)
