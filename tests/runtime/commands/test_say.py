"""Lines that no name breaks, no log is spoilt by, and no terminal is too narrow for."""

import io
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.commands.run import main
from poan_runtime.commands.say import write_line

COMMAND = [sys.executable, "-m", "poan_runtime.commands.run"]


def test_a_name_with_a_line_break_and_a_colour_code_stays_one_line(
    nearest_x2: Path, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(nearest_x2), "missing\n\x1b[31mred.nii"]) == 2
    assert capsys.readouterr().err == (
        "poan-run: missing\\n\\x1b[31mred.nii: no such file or folder\n"
    )
    assert main([str(nearest_x2), str(make_scan("two\nlines.nii"))]) == 0
    (written,) = [line for line in capsys.readouterr().out.splitlines() if "40x36x5" in line]
    assert "two\\nlines_desc-sr.nii.gz: 40x36x5" in written


def test_an_option_with_a_line_break_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["t2_x2", "scan.nii", "--device", "c\nuda"])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_too_long_for_the_file_system_is_one_line(
    nearest_x2: Path, make_scan: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    long = "x" * 300
    for arguments in (
        [str(nearest_x2), f"{long}.nii"],
        [long, str(make_scan())],
        [f"./{long}", str(make_scan())],
        [str(nearest_x2), str(make_scan()), "-o", str(tmp_path / f"{long}.nii")],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_narrow_encoding_gets_escapes() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_line("kopf-für.nii", stream)
    stream.seek(0)
    assert stream.read() == "kopf-f\\xfcr.nii\n"


def test_a_finished_run_does_not_end_in_an_encoding_error(
    nearest_x2: Path, make_scan: Any, repository: Path
) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(repository)}
    scan = make_scan("für.nii")
    done = subprocess.run(
        [*COMMAND, str(nearest_x2), str(scan)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "f\\xfcr_desc-sr.nii.gz: 40x36x5" in done.stdout


def test_a_reader_that_leaves_is_no_traceback(repository: Path) -> None:
    line = f"{sys.executable} -m poan_runtime.commands.run --list | head -c 1"
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    for _ in range(3):
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""


def test_what_nibabel_mends_in_a_header_is_a_warning_with_the_files_name(
    nearest_x2: Path, make_scan: Any, repository: Path
) -> None:
    scan = make_scan("scan.nii")
    data = bytearray(scan.read_bytes())
    data[252:256] = struct.pack("<hh", 77, -3)  # qform_code, sform_code
    data[80:84] = struct.pack("<f", -0.9)  # pixdim[1]
    scan.write_bytes(data)
    done = subprocess.run(
        [*COMMAND, str(nearest_x2), str(scan)],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert all(line.startswith("poan-run: warning: scan.nii: header: ") for line in lines), lines
    for field in ("qform_code", "sform_code", "pixdim"):
        assert len([line for line in lines if field in line]) == 1, lines
