"""The long matrices in full: ``python -m tests.benchmarks.soak [PYTEST ARGUMENTS]`` writes its section of RESULTS.md."""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tests.benchmarks.demo import ROOT, machine, write_section


def outcomes(report: Path) -> dict[str, Counter[str]]:
    """Per test function: cases passed, failed and skipped, and seconds, from a JUnit report."""
    table: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        counts = table.setdefault(f"{case.get('classname')}.{str(case.get('name')).partition('[')[0]}", Counter())
        found = {child.tag for child in case}
        counts["failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"] += 1
        counts["seconds"] += round(float(case.get("time", 0)))
    return table


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "soak", "-n", "2", "--dist", "load", f"--junitxml={report}"]
        code = subprocess.run([*command, *sys.argv[1:]], cwd=ROOT).returncode
        table = outcomes(report)
    arguments = " ".join(["python -m tests.benchmarks.soak", *sys.argv[1:]])
    rows = [
        f"| {name.removeprefix('tests.')} | {n['passed']} | {n['failed']} | {n['skipped']} | {n['seconds']} |"
        for name, n in table.items()
    ]
    head = ["| test | passed | failed | skipped | seconds |", "|---|---:|---:|---:|---:|"]
    write_section("Soak", [f"`{arguments}` ({machine()}).", "", *head, *rows])
    return code


if __name__ == "__main__":
    sys.exit(main())
