"""Every test marked gpu, with its outcome and reason."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any


def run() -> dict[str, Any]:
    """Counts, and each test by name."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests", "-q", "-rs"]
        subprocess.run([*command, f"--junitxml={report}"], check=False)
        tests = [outcome(case) for case in ET.parse(report).getroot().iter("testcase")]
    counts = {
        kind: sum(test["outcome"] == kind for test in tests)
        for kind in ("passed", "failed", "skipped")
    }
    return {"counts": counts, "tests": tests, "failed": counts["failed"]}


def outcome(case: ET.Element) -> dict[str, Any]:
    """One test."""
    entry: dict[str, Any] = {"name": case.get("name"), "outcome": "passed"}
    for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := case.find(kind)) is not None:
            entry |= {"outcome": word, "reason": found.get("message")}
    return entry
