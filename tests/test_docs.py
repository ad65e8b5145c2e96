"""Every block of the pages runs, or says why not; every link leads somewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.runtime.images.dicom.made import image as image_of
from tests.runtime.images.dicom.made import write

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"]
FENCED = re.compile(r"^```(sh|bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_FENCE = re.compile(r"^ *(?:```|~~~).*?^ *(?:```|~~~)$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"\n\s*\n((?:    .*\n)+)")
COMMAND = re.compile(
    r"^\s*(?:\$ )?(?:poan-\w+|pip|python3?|make|docker|torchrun|sbatch) ", re.MULTILINE
)
MARK = re.compile(r"^# not run here: \S.+$", re.MULTILINE)
NOT_RUN = {
    "README.md": 1,
    "gpu.md": 2,
    "models.md": 1,
    "networks.md": 4,
    "scale.md": 3,
    "scanner-room.md": 2,
    "training.md": 1,
    "use.md": 1,
}
"""How many blocks of a page say why they are not run."""
COMMANDS = {
    "poan-run": "poan_runtime.commands.run",
    "poan-bids": "poan_runtime.commands.bids",
    "poan-bench": "poan_runtime.commands.bench",
    "poan-mrd": "poan_runtime.commands.mrd",
    "poan-train": "poan_train",
    "poan-eval": "poan_train.evaluate",
    "poan-export": "poan_export",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return FENCED.findall(page.read_text())


def unseen(text: str) -> list[str]:
    """Commands that `blocks` does not find: in an indented block, or behind another fence."""
    rest = FENCED.sub("", text)
    others = [*OTHER_FENCE.findall(rest), *INDENTED.findall(OTHER_FENCE.sub("", rest))]
    return [block for block in others if COMMAND.search(block)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A T2 scan, a folder of three to train on, a DICOM series under two names."""
    y, x = np.mgrid[:64, :60]
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(3):
        slices = random.integers(1, 30, (64, 60, 4)).astype(np.int16)
        for z in range(4):
            for _ in range(8):
                cy, cx, r = random.uniform(8, 52), random.uniform(8, 52), random.uniform(2, 9)
                slices[..., z][(y - cy) ** 2 + (x - cx) ** 2 < r**2] += random.integers(50, 400)
        image = nibabel.Nifti1Image(slices, np.diag([1.0, 1.0, 4.0, 1.0]))
        nibabel.save(image, tmp_path / f"data/sub-{number}_T2w.nii.gz")
        nibabel.save(image, tmp_path / "scan.nii.gz")
    for z in range(4):
        plane = image_of(z + 1, (0.0, 0.0, 4.0 * z), slices[..., z])
        plane.SeriesNumber = 401
        write(plane, tmp_path / f"STUDY_FOLDER/{z}.dcm")
    (tmp_path / "DICOM_FOLDER").symlink_to("STUDY_FOLDER")
    return tmp_path


def run(kind: str, code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    if kind == "python":
        command = [sys.executable, "-c", code]
    else:
        functions = "".join(
            f'{name}() {{ "{sys.executable}" -m {module} "$@"; }}\n'
            for name, module in COMMANDS.items()
        )
        functions += "pip() { :; }\n"  # what it would install is here
        command = ["bash", "-e", "-c", functions + code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs_or_says_why_not(page: Path, folder: Path) -> None:
    marked = 0
    for kind, code in blocks(page):
        if MARK.match(code):
            marked += 1
            continue
        done = run(kind, code, folder)
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout}{done.stderr}"
    assert marked == NOT_RUN.get(page.name, 0)


def cut_short(text: str) -> list[str]:
    """Blocks whose last command goes on behind their end."""
    return [code for _, code in FENCED.findall(text) if code.rstrip().endswith("\\")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_of_a_page_ends_within_a_command(page: Path) -> None:
    assert cut_short(page.read_text()) == []


def test_a_block_that_ends_within_a_command_is_found() -> None:
    assert cut_short("```sh\npoan-run a \\\n```\n    b\n") == ["poan-run a \\\n"]


def test_a_block_that_fails_is_found(folder: Path) -> None:
    assert run("sh", "poan-run t2_x2 missing.nii", folder).returncode == 2
    assert run("sh", "false\ntrue", folder).returncode == 1
    assert run("python", "import poan_runtime; poan_runtime.nothing", folder).returncode == 1


READ_TOO = [ROOT / "SECURITY.md", ROOT / "benchmarks/README.md"]


@pytest.mark.parametrize("page", [*PAGES, *READ_TOO], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_of_a_page_is_overlooked(page: Path) -> None:
    assert unseen(page.read_text()) == []


def test_commands_in_other_blocks_are_found() -> None:
    indented = "Do:\n\n    pip install 'poan[gpu]'\n    poan-run a b\n\nThen.\n"
    assert unseen(indented) == ["    pip install 'poan[gpu]'\n    poan-run a b\n"]
    assert len(unseen("```\n$ poan-run a b\n```\n")) == 1
    assert unseen("```sh\npoan-run a b\n```\n\n    a table\n") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_installs_from_an_index_that_poan_is_not_on(page: Path) -> None:
    assert not re.search(r"pip install[^`\n]*['\" ]poan\b", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_third_parties_names_all_that_is_vendored_and_every_shipped_model() -> None:
    page = (ROOT / "THIRD_PARTY.md").read_text()
    packages = [ROOT / name for name in ("poan_runtime", "poan_export", "poan_train")]
    vendored = [path for top in packages for path in top.rglob("vendored/**/*") if path.is_file()]
    shipped = [path.parent for path in ROOT.glob("poan_runtime/models/shipped/*/manifest.json")]
    assert len(vendored) >= 2
    assert len(shipped) >= 6
    named = [path.relative_to(ROOT).as_posix() for path in vendored]
    named += [f"`{folder.name}`" for folder in shipped]
    assert [name for name in named if name not in page] == []


def test_every_collection_that_a_model_was_trained_on_is_credited() -> None:
    page = (ROOT / "THIRD_PARTY.md").read_text()
    for manifest in ROOT.glob("poan_runtime/models/shipped/*/manifest.json"):
        licence = json.loads(manifest.read_text())["data_licence"]
        for words in re.findall(r"\(([^)]+)\)", licence):
            for name in re.split(r", |; |: | and ", words.removeprefix("TCIA: ")):
                assert name.removeprefix("OpenNeuro ") in page, f"{manifest.parent.name}: {name}"


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^  - .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in ROOT.glob("docs/*.md"))
