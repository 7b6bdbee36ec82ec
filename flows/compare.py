"""Several losses from one warm start: the same data, the same reference, one table. Nothing is registered or promoted."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.experiment import load_experiment, load_profile
from tasks.comparison import Comparison, publish_comparison, sort_out, train_candidates
from tasks.dag import (
    optimize_preferences,
    prepare_base,
    run_benchmarks,
    snapshot_data,
    train_warm_start,
    validate_data,
    write_texts,
)
from tasks.preflight import preflight
from tasks.run import open_run


def _name() -> str:
    return f"{Path(flow_run.parameters['experiment']).stem} compare {datetime.now():%Y-%m-%d %H:%M:%S}"


@flow(name="compare", flow_run_name=_name, persist_result=False, validate_parameters=False)
def compare(experiment: str, losses: Sequence[str] | None = None, profile: str | None = None) -> Comparison:
    """Train the candidates of the experiment's ``compare`` list, all or those labelled ``losses``, and compare them.

    All are judged on the same held-out pairs, cut to the ``preference`` section's ``max_tokens``.
    """
    loaded, machine = load_experiment(experiment), load_profile(profile)
    e = loaded.experiment
    candidates = e.candidates(losses)
    preflight(loaded.root, e.model, e.data, e.benchmarks, e.gate)

    settings, log = e.model_dump(mode="json"), get_run_logger().info
    with open_run(e.name, e.digest, e.seed, loaded.root, machine, settings, flow_run.id, log, "compare") as run:
        snapshots = snapshot_data(run, e.data)
        texts = write_texts(run, e.benchmarks)
        data = validate_data(run, e.validation, e.data, snapshots, texts, e.model, e.max_tokens)
        base = prepare_base(run, e.model, data)
        warm_start = train_warm_start(run, e.sft, base, data)
        policies = sort_out(run, candidates, warm_start, data)
        policies = train_candidates(run, policies, warm_start, data, optimize_preferences)

        models = {"warm_start": warm_start["model"], **policies.models}
        scores = run_benchmarks(run, e.benchmarks, models, data, e.preference.max_tokens)
        return publish_comparison(run, loaded.path, warm_start, policies, scores)
