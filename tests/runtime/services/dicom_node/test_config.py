"""The node's configuration: what is wrong is one line, certificates are asked for."""

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from poan_runtime.commands.node import main
from poan_runtime.services.dicom_node.config import Tls
from poan_runtime.services.dicom_node.send import client_context, server_context
from tests.runtime.images.dicom.made import program
from tests.runtime.services.dicom_node.conftest import WriteConfig
from tests.runtime.services.dicom_node.peer import Archive, Running, images, sent

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Run = Callable[[Path], Running]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("quiet_s = 0.3", "quiet = 0.3", "[work] quiet: no such key"),
        ("quiet_s = 0.3", 'quiet_s = "x"', "[work] quiet_s: expected a number, got 'x'"),
        ('targets = ["pacs"]', 'targets = ["pac"]', "targets: pac: no [[peer]] has this name"),
        ('targets = ["pacs"]', "targets = []\nrows = [1]", "[rule 1] targets: expected at least"),
        ('ae_title = "PACS"', 'ae_title = "PACSPACSPACSPACSPACS"', "1 to 16 ASCII"),
        ('storage = "node"', "storage = 3", "storage: expected the path of a folder"),
        ("[[rule]]", '[[rule]]\ndescription = "("', "not a regular expression"),
        ("[listen]", "[listen]\ntls = true", "[tls]: is missing"),
        ("[work]", "[work", "not TOML"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_the_key(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    path = write_config()
    path.write_text(path.read_text().replace(old, new, 1))
    assert main(["--config", str(path), "check-config"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_check_config_calls_the_peers(
    write_config: WriteConfig, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config()
    assert main(["--config", str(path), "check-config", "--echo"]) == 0
    assert "peer pacs: answers" in capsys.readouterr().out
    archive.stop()
    assert main(["--config", str(path), "check-config", "--echo"]) == 2
    assert "pacs: does not answer" in capsys.readouterr().err
    archive.start()


def certificates(folder: Path) -> None:
    """An authority, and a certificate of localhost that it signed."""

    openssl = program("openssl")
    lines = [
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -days 2 "
        "-copy_extensions copy",
    ]
    for line in lines:
        subprocess.run([openssl, *line.split()], cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
def test_tls_shows_and_asks_for_certificates_on_both_sides(
    run: Run, tmp_path: Path, write_config: WriteConfig
) -> None:

    certificates(tmp_path)
    tls = Tls(
        certificate=str(tmp_path / "own.pem"),
        key=str(tmp_path / "own.key"),
        ca=str(tmp_path / "ca.pem"),
    )
    archive = Archive(tls=server_context(tls))
    try:
        path = write_config(
            listen="tls = true",
            peer="tls = true",
            more='[tls]\ncertificate = "own.pem"\nkey = "own.key"\nca = "ca.pem"',
        )
        text = path.read_text().splitlines()
        at = text.index("[[peer]]") + 4
        text[at] = f"port = {archive.port}"
        path.write_text("\n".join(text))
        running = run(path)
        port = running.node.receiver.port
        anonymous = ssl.create_default_context(cafile=tls.ca)
        assert sent(port, images(2)) == []
        assert sent(port, images(2), tls_args=(anonymous, "localhost")) == []
        known = (client_context(tls), "localhost")
        assert sent(port, images(2), tls_args=known) == [0, 0]
        assert running.until(lambda: running.node.queue.jobs("done") != [])
        assert len(archive.got) == 2
    finally:
        archive.stop()
