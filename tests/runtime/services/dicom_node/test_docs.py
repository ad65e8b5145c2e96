"""The example configuration in docs/ is whole: every key, the default where it is a remark."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from poan_runtime.services.dicom_node.config import Listen, Peer, Rule, Send, Work, read_config


def test_the_example_is_a_configuration(repository: Path) -> None:
    config = read_config(repository / "docs/node/node.toml")
    assert config.storage == Path("/var/lib/poan")
    assert config.peers[0].commitment


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
