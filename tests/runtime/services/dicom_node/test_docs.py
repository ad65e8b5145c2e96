"""What docs/ hands to an integrator: every key of node.toml, a unit, a compose file that hold."""

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.commands.node import parser
from poan_runtime.services.dicom_node.config import Listen, Peer, Rule, Send, Work, read_config
from tests.runtime.images.dicom.made import program


@pytest.mark.slow
def test_the_example_is_a_configuration(repository: Path) -> None:
    config = read_config(repository / "docs/node/node.toml")
    assert config.storage == Path("/var/lib/poan")
    assert config.peers[0].commitment


@pytest.mark.slow
def test_the_example_shows_every_key_with_its_default(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs/node/node.toml").read_text()
    shown = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.M).replace("# [tls]", "[tls]")
    path = tmp_path / "node.toml"
    path.write_text(shown)
    config = read_config(path)
    for name, kind, part in (
        ("[listen]", Listen, config.listen),
        ("[work]", Work, config.work),
        ("[send]", Send, config.send),
        ("[[peer]]", Peer, config.peers[0]),
        ("[[rule]]", Rule, config.rules[0]),
    ):
        section = re.split(r"^#? ?\[", text.split(f"\n{name}")[1], flags=re.M)[0]
        for field in dataclasses.fields(kind):
            line = re.search(rf"^(# )?{field.name} = ", section, re.M)
            assert line is not None, field.name
            if line[1]:
                found: Any = getattr(part, field.name)
                assert found == field.default, field.name


def test_the_unit_runs_the_program_with_options_that_it_has(repository: Path) -> None:
    unit = (repository / "docs/node/poan-node.service").read_text()
    lines = re.findall(r"^ExecStart(?:Pre)?=(.*)$", unit, re.M)
    assert len(lines) == 2
    for line in lines:
        program_, *arguments = shlex.split(line)
        assert Path(program_).name == "poan-node"
        args = parser().parse_args(arguments)  # exits on an option that is not there
        assert args.action in ("check-config", "run")
    waits = 2 * read_config(repository / "docs/node/node.toml").listen.timeout_s
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert stop is not None
    assert int(stop[1]) > waits


def test_systemd_finds_no_fault_with_the_unit(repository: Path, tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    unit = (repository / "docs/node/poan-node.service").read_text()
    there = tmp_path / "poan-node.service"
    there.write_text(unit.replace("/opt/poan/bin/poan-node", "/bin/true"))
    run = subprocess.run([analyze, "verify", str(there)], capture_output=True, text=True)
    said = [line for line in run.stderr.splitlines() if "poan-node.service" in line]
    assert (run.returncode, said) == (0, [])


def test_the_compose_file_runs_the_node_beside_the_peer_of_the_example(repository: Path) -> None:
    yaml = pytest.importorskip("yaml")
    folder = repository / "docs/node"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    poan, orthanc = compose["services"]["poan"], compose["services"]["orthanc"]
    config = read_config(folder / "node.toml")
    command = re.search(r"exec poan-node (.*)\"", poan["command"])
    assert command is not None
    args = parser().parse_args(command[1].split())
    mounts = dict(line.split(":")[:2][::-1] for line in poan["volumes"])
    assert (folder / mounts[str(args.config)]).is_file()
    assert mounts[str(config.storage)] in compose["volumes"]
    assert (folder / mounts["/src"]).resolve() == repository
    assert f"127.0.0.1:{config.listen.port}:{config.listen.port}" in poan["ports"]
    (peer,) = config.peers
    assert peer.host in compose["services"]
    assert orthanc["environment"]["ORTHANC__DICOM_AET"] == peer.ae_title
    known = json.loads(orthanc["environment"]["ORTHANC__DICOM_MODALITIES"])["poan"]
    assert (known["AET"], known["Port"]) == (config.listen.ae_title, config.listen.port)
    extras = re.search(r"/src\[([a-z,]+)\]", poan["command"])
    assert extras is not None
    assert {"cpu", "node"} == set(extras[1].split(","))
    seconds = int(poan["stop_grace_period"].removesuffix("s"))
    assert seconds > 2 * config.listen.timeout_s


COMPOSE_KEYS = {
    "image", "command", "volumes", "ports", "stop_grace_period", "restart", "depends_on",
    "environment",
}  # fmt: skip


def test_every_key_of_the_compose_file_is_one_of_the_specification(repository: Path) -> None:
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((repository / "docs/node/compose.yaml").read_text())
    assert set(compose) == {"services", "volumes"}
    for service in compose["services"].values():
        assert set(service) <= COMPOSE_KEYS
        named = {v.split(":")[0] for v in service["volumes"] if not v.startswith(".")}
        assert named <= set(compose["volumes"])
        assert set(service.get("depends_on", [])) <= set(compose["services"])
