"""The console script ``alignmill``: parse, call, print; nothing else. Heavy imports wait until a command needs them."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

EXIT_CODES = (
    "exit codes: 0 done (a refused gate too), 1 a fault, 2 input or settings refused, 3 evidence does not verify"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "call"):
        parser.print_help(sys.stderr)
        return 2
    try:
        # Libraries print what they like: standard output is kept for the result.
        with contextlib.redirect_stdout(sys.stderr):
            value, show, *code = options.call(options)
    except KeyboardInterrupt:
        return _fail(
            options, "stopped by the keyboard; what was finished is kept: run again and it goes on from there", 1
        )
    except Exception as error:
        return _fail(options, *_explain(error))
    if value is None:
        return 0
    if options.json:
        print(json.dumps(value))
    else:
        show()
    return code[0] if code else 0


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="alignmill",
        description="Retrain on preferences, benchmark, gate, register and promote: one reproducible run.",
        epilog=EXIT_CODES,
        formatter_class=form,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, call: Callable[..., Any], help: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help, description=help, epilog=f"example: {example}\n{EXIT_CODES}", formatter_class=form
        )
        sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
        sub.set_defaults(call=call)
        return sub

    init = command("init", _init, "write an experiment file from a data file", "alignmill init pairs.jsonl")
    init.add_argument("data", metavar="DATA", help="preference data: JSONL, JSON, CSV or Parquet; plain, .gz or .zst")
    init.add_argument("--output", "-o", metavar="FILE", help="the file to write (default: the data's name, .yaml)")
    init.add_argument("--base", metavar="MODEL", help="a local model folder (default: a small new model)")

    example = "deployments/experiments/helpdesk.yaml"
    check = command(
        "check",
        _check,
        "settings and data without training: what would run, be quarantined, is cached",
        f"alignmill check {example}",
    )
    run = command("run", _run, "the whole DAG, now", f"alignmill run {example}")
    compare = command(
        "compare",
        _compare,
        "the losses of the experiment's compare list, from one warm start: one table",
        f"alignmill compare {example} --losses dpo,ipo",
    )
    compare.add_argument("--losses", metavar="LABELS", help="some of the list, by label, with commas (default: all)")
    for sub in (check, run, compare):
        sub.add_argument("experiment", metavar="EXPERIMENT", help="an experiment file (YAML)")
        sub.add_argument(
            "--profile", metavar="NAME", help="a profile file, or the name of a shipped one (default: laptop)"
        )

    status = command("status", _status, "runs, champion, challenger, versions", "alignmill status helpdesk")
    status.add_argument("model", metavar="MODEL", nargs="?", help="one registered model (default: all of them)")
    ui = command("ui", _ui, "open Prefect's and MLflow's pages on this machine", "alignmill ui")
    ui.add_argument("--prefect-port", type=int, default=4200, metavar="PORT")
    ui.add_argument("--mlflow-port", type=int, default=5000, metavar="PORT")
    return parser


def _init(options: argparse.Namespace) -> tuple[Any, Callable[[], None]]:
    from flows.init import write_experiment

    value = write_experiment(options.data, options.output, options.base)
    return value, lambda: print(f"wrote {value['file']}: {value['summary']}\nnext: alignmill check {value['file']}")


def _check(options: argparse.Namespace) -> tuple[Any, Callable[[], None]]:
    from flows.check import check
    from flows.show import show

    value = check(options.experiment, options.profile)
    return value, lambda: show(value)


def _run(options: argparse.Namespace) -> tuple[Any, Callable[[], None]]:
    from flows.launch import launch, show

    value = launch(options.experiment, options.profile)
    return value, lambda: show(value)


def _compare(options: argparse.Namespace) -> tuple[Any, Callable[[], None], int]:
    from flows.launch import launch_comparison, show_comparison

    labels = None if options.losses is None else [label.strip() for label in options.losses.split(",")]
    value = launch_comparison(options.experiment, labels, options.profile)
    return value, lambda: show_comparison(value), 1 if value["failed"] else 0


def _status(options: argparse.Namespace) -> tuple[Any, Callable[[], None]]:
    from tasks.status import show, status

    value = status(options.model)
    return value, lambda: show(value)


def _ui(options: argparse.Namespace) -> tuple[Any, Callable[[], None]]:
    from tasks.pages import serve_pages

    serve_pages(options.prefect_port, options.mlflow_port, options.json)
    return None, lambda: None


def _explain(error: Exception) -> tuple[str, int]:
    """A fault's message and exit code. What we raise ourselves explains itself; anything else shows its type."""
    from tasks.faults import explain

    return explain(error)


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    print(f"alignmill: {message}", file=sys.stderr)
    if options.json:
        print(json.dumps({"error": message, "exit_code": code}))
    return code


if __name__ == "__main__":
    sys.exit(main())
