"""The MRD server against a client that is not ours: the package ismrmrd."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.commands.mrd import main
from poan_runtime.intensity import intensity_unit
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.services.mrd.finer import SERIES_OFFSET, Way
from poan_runtime.super_resolve import upscale_file
from tests.runtime.services.mrd.client import (
    HERE,
    ProtocolSerializer,
    image,
    ismrmrd,
    plane,
    replies,
)
from tests.runtime.services.mrd.conftest import Serve


def test_images_come_back_finer_at_the_same_place_in_a_series_of_their_own(serve: Serve) -> None:
    answers = replies(serve(), [image(plane(n), n) for n in range(3)])
    assert len(answers) == 3
    for n, answer in enumerate(answers):
        assert answer.data.dtype == np.uint16
        assert np.array_equal(answer.data[0, 0], plane(n).repeat(2, 0).repeat(2, 1))
        assert (answer.slice, answer.image_index) == (n, n + 1)
        assert answer.image_series_index == 3 + SERIES_OFFSET
        assert [*answer.field_of_view] == [27.0, 40.0, 4.0]
        assert [*answer.position] == [10.0, -20.0, 4.0 * n]
        meta = ismrmrd.Meta.deserialize(answer.attribute_string)
        assert meta["ImageProcessingHistory"] == ["FIRE", "POAN"]
        assert meta["Keep_image_geometry"] == "1"
        assert meta["SequenceDescriptionAdditional"] == "SR_x2_AI"
        assert meta["Mine"] == "kept"


def test_where_the_position_is_the_corner_it_moves_by_a_quarter_voxel(serve: Serve) -> None:
    (answer,) = replies(serve(position="corner"), [image(plane(0))])
    np.testing.assert_allclose([*answer.position], [10 - 0.25 * 1.5, -20 - 0.25 * 2.0, 0.0])


@pytest.mark.parametrize("header", [b"", b"<ismrmrdHeader/>\0", b"\xff\xfe"])
def test_a_header_that_is_no_xml_does_no_harm(serve: Serve, header: bytes) -> None:
    assert len(replies(serve(), [image(plane(0))], header)) == 1


def test_phase_and_complex_images_pass_through_untouched(serve: Serve, said: list[str]) -> None:
    sent = [
        image(plane(0), image_type=2),
        image(plane(1).astype(np.complex64), image_type=5),
        image(plane(2)),
    ]
    answers = replies(serve(), sent)
    assert [a.data.shape[-1] for a in answers] == [18, 18, 36]
    for before, after in zip(sent[:2], answers[:2], strict=True):
        assert np.array_equal(before.data, after.data)
        assert before.attribute_string == after.attribute_string
        assert bytes(before.getHead()) == bytes(after.getHead())
    end = time.monotonic() + 10
    while len(said) < 2 and time.monotonic() < end:  # it is said once the connection is closed
        time.sleep(0.01)
    assert "2 complex or phase images passed through untouched" in said


def test_slices_in_any_order_come_back_in_that_order(serve: Serve) -> None:
    order = [0, 2, 4, 1, 3]
    answers = replies(serve(unit=1000.0), [image(plane(n), n) for n in order])
    assert [a.slice for a in answers] == order
    for answer, n in zip(answers, order, strict=True):
        assert np.array_equal(answer.data[0, 0, ::2, ::2], plane(n))


def test_with_the_volumes_unit_the_voxels_are_those_of_poan_run(
    serve: Serve, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    volume = np.stack([plane(n) // (n + 1) for n in range(4)], axis=2).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([1.5, 2, 4, 1])), tmp_path / "scan.nii")
    with load_network(make_model(smooth=True)) as network:
        upscale_file(tmp_path / "scan.nii", tmp_path / "fine.nii", network)
        expected = np.asarray(nib.load(tmp_path / "fine.nii").dataobj)
        for way in ({"wait_volume": True}, {"unit": intensity_unit(volume)}):
            sent = [image(np.ascontiguousarray(volume[..., n]), n) for n in range(4)]
            answers = replies(serve(network, **way), sent)
            found = np.stack([a.data[0, 0] for a in answers], axis=2)
            assert np.array_equal(found, expected)


def test_ringing_below_zero_is_cut_off_as_poan_run_does(
    serve: Serve, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    volume = np.zeros((20, 18, 1), np.float32)
    volume[6:14, 5:13] = 100
    nib.save(nib.Nifti1Image(volume, np.diag([1.5, 2, 4, 1])), tmp_path / "scan.nii")
    kept = Settings(keep_measured="on", native="off")
    with load_network(make_model(smooth=True)) as network:
        upscale_file(tmp_path / "scan.nii", tmp_path / "fine.nii", network, kept)
        expected = np.asarray(nib.load(tmp_path / "fine.nii").dataobj)[..., 0]
        (answer,) = replies(serve(network, settings=kept), [image(volume[..., 0])])
    assert np.array_equal(answer.data[0, 0], expected)
    assert (expected == 0).sum() > 100  # edges ring: about half of the dark voxels fall below


def test_the_first_images_unit_stays_for_its_series(network: Network) -> None:
    from poan_runtime.services.mrd.finer import Stream
    from poan_runtime.services.mrd.wire import read_message

    stream = Stream(network, Way())
    for n, factor in ((0, 1), (1, 3)):
        content = _wire(image(plane(n) * np.uint16(factor), n))
        (_, one) = read_message(content)
        [*stream.take(one)]  # type: ignore[arg-type]
    assert stream._units == {3: intensity_unit(plane(0))}


def _wire(made: Any) -> Callable[[int], bytes]:
    import io

    stream = io.BytesIO()
    ProtocolSerializer(stream).serialize(made)
    stream.seek(0)
    return stream.read


def test_raw_data_gets_one_line_and_the_end(serve: Serve) -> None:
    answers = replies(serve(), [ismrmrd.Acquisition.from_array(np.zeros((2, 8), np.complex64))])
    assert answers == ["poan-mrd: raw data came: poan-mrd takes reconstructed images"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (struct.pack("<H", 77), "message 77"),
        (struct.pack("<HI", 3, 1 << 30), "a text of 1073741824 bytes"),
        (struct.pack("<H", 1022) + bytes(198 + 8), "data type 0"),
        (struct.pack("<H", 1022) + bytes(10), "ends 188 bytes too early"),
    ],
)
def test_a_broken_message_is_one_line_and_the_server_goes_on(
    serve: Serve, content: bytes, line: str
) -> None:
    port = serve()
    with socket.create_connection((HERE, port), timeout=30) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    kind, length = struct.unpack_from("<HI", answer)
    assert kind == 5
    assert line in answer[6 : 6 + length].decode()
    assert answer[6 + length :] == struct.pack("<H", 4)
    assert len(replies(port, [image(plane(0))])) == 1


def test_an_image_with_more_values_than_memory_is_refused_before_it_is_read(serve: Serve) -> None:
    head = bytearray(198)
    struct.pack_into("<H", head, 2, 1)
    struct.pack_into("<3H", head, 16, 65535, 65535, 65535)
    struct.pack_into("<H", head, 34, 1)
    with socket.create_connection((HERE, serve()), timeout=30) as connection:
        connection.sendall(struct.pack("<H", 1022) + head + bytes(8))
        assert b"expected 1 to" in connection.makefile("rb").read()


def test_the_command_serves_says_its_latency_and_ends_on_sigterm(nearest_x2: Path) -> None:
    line = [sys.executable, "-m", "poan_runtime.commands.mrd", str(nearest_x2), "--port", "0"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "tiny_x2 is warm" in first
    port = int(first.split(":")[2].split(",")[0])
    assert len(replies(port, [image(plane(0))])) == 1
    assert "1 images super-resolved, p50" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stderr.close()


def test_the_openrecon_label_is_json_with_port_and_protocol(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["t2_x2", "--openrecon-label"]) == 0
    label = json.loads(capsys.readouterr().out)["reconstruction"]
    assert label["transfer_protocol"] == {"protocol": "ISMRMRD", "version": "1.4.1"}
    assert (label["port"], label["emitter"], label["injector"]) == (9002, "image", "image")
    assert label["content_qualification_type"] == "RESEARCH"


def test_an_unknown_model_and_a_taken_port_are_one_line(
    nearest_x2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["no_such_model"]) == 2
    with socket.create_server((HERE, 0)) as taken:
        assert main([str(nearest_x2), "--port", str(taken.getsockname()[1])]) == 2
    assert capsys.readouterr().err.count("\n") == 2
