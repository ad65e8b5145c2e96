"""The tormentor of the commands finds a partial output when there is one."""

from pathlib import Path
from random import Random

from benchmarks.kills import Command, check_json, kill_at_random


def test_a_partial_output_is_found(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "o.json").write_text("{")
    command = Command(
        folder=tmp_path,
        words=["time", "sleep", "1"],
        outputs=["o.json"],
        check=check_json,
    )
    found = kill_at_random(command, 0.5, Random(0))
    assert found["outputs"] == 1
    assert found["partial"][0].startswith("o.json: ")
