"""The DAG: preference data in, a benchmarked and gated model version in the registry out."""

from datetime import datetime
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.experiment import load_experiment, load_profile
from tasks.dag import (
    decide_promotion,
    optimize_preferences,
    prepare_base,
    promote_version,
    register_version,
    run_benchmarks,
    snapshot_data,
    train_warm_start,
    validate_data,
    write_texts,
)
from tasks.outcome import Outcome, publish
from tasks.preflight import preflight
from tasks.promotion import find_rival
from tasks.run import open_run


def _name() -> str:
    return f"{Path(flow_run.parameters['experiment']).stem} {datetime.now():%Y-%m-%d %H:%M:%S}"


@flow(name="align", flow_run_name=_name, persist_result=False, validate_parameters=False)
def align(experiment: str, profile: str | None = None) -> Outcome:
    """Run the experiment file ``experiment`` on ``profile`` (a file or the name of a shipped one)."""
    loaded, machine = load_experiment(experiment), load_profile(profile)
    e = loaded.experiment
    preflight(loaded.root, e.model, e.data, e.benchmarks, e.gate)

    settings, log = e.model_dump(mode="json"), get_run_logger().info
    with open_run(e.name, e.digest, e.seed, loaded.root, machine, settings, flow_run.id, log) as run:
        snapshots = snapshot_data(run, e.data)
        texts = write_texts(run, e.benchmarks)
        data = validate_data(run, e.validation, e.data, snapshots, texts, e.model, e.max_tokens)
        base = prepare_base(run, e.model, data)
        warm_start = train_warm_start(run, e.sft, base, data)
        policy = optimize_preferences(run, e.preference, warm_start, data)

        rival = find_rival(run, e.registry, policy["model"])
        models = {"base": base["model"], "warm_start": warm_start["model"], "policy": policy["model"]}
        models |= {"champion": rival.weights} if rival.weights else {}
        scores = run_benchmarks(run, e.benchmarks, models, data, e.preference.max_tokens)

        judged = decide_promotion(run, e.gate, scores, rival)
        registered = register_version(run, e.registry, policy, judged, scores)
        promotion = promote_version(run, e.registry, registered, judged)
        return publish(run, loaded.path, data, models, scores, judged, registered, promotion)
