"""The Python interface."""

import inspect
import re
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import poan_runtime
from poan_runtime import geometry
from poan_runtime.images.source import ArraySink, ArraySource
from poan_runtime.super_resolve import Pair


def repeated(data: np.ndarray) -> np.ndarray:
    return data.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("shape", [(20, 18), (20, 18, 3), (20, 18, 3, 2)])
def test_a_path_and_a_volume_give_the_same(
    nearest_x2: Path, make_scan: Any, shape: tuple[int, ...]
) -> None:
    path = make_scan(shape=shape)
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    from_path = poan_runtime.upscale(path, nearest_x2)
    volume = poan_runtime.Volume(data=data.astype(np.float32), affine=image.affine)
    from_volume = poan_runtime.upscale(volume, poan_runtime.load_network(nearest_x2))
    # Eight float32 roundings of values below 100.
    np.testing.assert_allclose(from_path.data, repeated(data), rtol=0, atol=5e-5)
    assert np.array_equal(from_path.data, from_volume.data)
    expected = geometry.upscaled_affine(image.affine, 2, 2, "centre")
    np.testing.assert_array_equal(from_path.affine, expected)
    np.testing.assert_array_equal(from_volume.affine, expected)


def test_the_kspace_grid_of_the_manifest_decides_the_affine(make_model: Any) -> None:
    volume = poan_runtime.Volume(data=np.ones((4, 4, 2), np.float32), affine=np.eye(4))
    fine = poan_runtime.upscale(volume, make_model(grid="kspace"))
    np.testing.assert_array_equal(fine.affine, np.diag([0.5, 0.5, 1, 1]))


def test_settings_are_obeyed(nearest_x2: Path) -> None:
    volume = poan_runtime.Volume(data=np.ones((4, 5, 6), np.float32), affine=np.eye(4))
    settings = poan_runtime.Settings(axis=0, self_ensemble=True)
    assert poan_runtime.upscale(volume, nearest_x2, settings).data.shape == (4, 10, 12)


def test_the_self_ensemble_averages_the_views(make_model: Any) -> None:
    data = np.random.default_rng(0).normal(size=(30, 30, 1)).astype(np.float32)
    volume = poan_runtime.Volume(data=data, affine=np.eye(4))
    model = make_model(smooth=True)
    once = poan_runtime.upscale(volume, model).data
    eight = poan_runtime.upscale(volume, model, poan_runtime.Settings(self_ensemble=True)).data
    # The kernel is symmetric: all views answer alike, up to the order of float32 sums below 4.
    np.testing.assert_allclose(eight, once, rtol=0, atol=4e-6)


def test_what_is_no_scan_of_real_voxels_is_refused(nearest_x2: Path) -> None:
    data = np.ones((4, 5, 2))
    with pytest.raises(poan_runtime.PoanError, match=r"a nibabel image or a Volume.*got ndarray"):
        poan_runtime.upscale(data, nearest_x2)  # type: ignore[arg-type]
    phase = nib.Nifti1Image(data.astype(np.complex64), np.eye(4))
    with pytest.raises(poan_runtime.PoanError, match="real or integer voxels, got complex64"):
        poan_runtime.upscale(phase, nearest_x2)


def test_an_outcome_is_shown_without_the_model(nearest_x2: Path, make_scan: Any) -> None:
    with poan_runtime.load_network(nearest_x2) as network:
        outcome = poan_runtime.upscale_file(make_scan(), ArraySink(), network)
    assert len(repr(outcome)) < 2000
    assert "Manifest(" not in repr(network)


def test_the_package_tells_its_version() -> None:
    assert poan_runtime.__version__ == metadata.version("poan")


def test_an_empty_array_is_refused(nearest_x2: Path) -> None:
    volume = poan_runtime.Volume(data=np.ones((4, 0, 6), np.float32), affine=np.eye(4))
    with pytest.raises(poan_runtime.PoanError, match=r"got shape \(4, 0, 6\)"):
        poan_runtime.upscale(volume, nearest_x2)


@pytest.mark.parametrize("name", poan_runtime.__all__)
def test_a_public_name_is_imported_when_asked_for_and_documented(name: str) -> None:
    found = getattr(poan_runtime, name)
    assert found.__name__ == name
    assert ">>> " in found.__doc__ or "::\n" in found.__doc__, "its docstring has an example"


def test_another_name_is_none_of_ours() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = poan_runtime.nothing


def examples() -> list[Any]:
    """The indented blocks after a line that ends in two colons, of every public docstring."""
    found = []
    for name in poan_runtime.__all__:
        text = inspect.getdoc(getattr(poan_runtime, name)) or ""
        blocks = re.findall(r"::\n\n((?:    .*\n?|\n)+)", text)
        found += [pytest.param(textwrap.dedent(block), id=name) for block in blocks]
    return found


@pytest.mark.parametrize("code", examples())
def test_the_examples_run_as_they_stand(
    code: str, make_scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(folder.name == "t2_x2" for folder in poan_runtime.shipped_models()):
        pytest.skip("needs the shipped model t2_x2")
    scan = make_scan(shape=(12, 10, 2))
    monkeypatch.chdir(tmp_path)
    exec(code, {"poan_runtime": poan_runtime, "scans": [scan]})


def test_a_source_goes_into_a_sink_and_every_slab_past_the_consumers(nearest_x2: Path) -> None:
    data = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32)
    source, sink = ArraySource(data, np.diag([1.0, 1.0, 3.0, 1.0])), ArraySink()
    seen: list[tuple[int, int]] = []

    def look(lies: geometry.Geometry, pair: Pair) -> None:
        assert lies.slices == 4
        assert np.array_equal(pair.lr, np.moveaxis(data[..., pair.volume], 2, 0)[pair.start :])
        assert pair.sr.shape == (len(pair.lr), 12, 10)
        seen.append((pair.volume, pair.start))

    outcome = poan_runtime.upscale_file(source, sink, nearest_x2, consumers=[look])
    assert seen == [(0, 0), (1, 0), (2, 0)]
    # Eight float32 roundings of values below 4.
    np.testing.assert_allclose(sink.data, repeated(data), rtol=0, atol=2e-6)
    assert len(outcome.units) == 3
    assert outcome.geometry.fine_shape == (12, 10, 4, 3)


def test_a_step_changes_what_is_written_and_seen(nearest_x2: Path) -> None:
    source, sink = ArraySource(np.ones((6, 5, 4), np.float32), np.eye(4)), ArraySink()
    seen: list[float] = []
    poan_runtime.upscale_file(
        source,
        sink,
        nearest_x2,
        steps=[lambda lr, sr: sr + lr.mean(), lambda lr, sr: 10 * sr],
        consumers=[lambda lies, pair: seen.append(float(pair.sr.max()))],
    )
    assert sink.data.min() == sink.data.max() == 20
    assert set(seen) == {20.0}


class FailingSink(ArraySink):
    """Fails as told; remembers whether it was finished and closed."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.finished = self.closed = False

    def write(self, volume: int, start: int, fine: Any) -> None:
        if self.stage == "write":
            raise poan_runtime.PoanError("write failed")

    def finish(self, remark: str | None = None) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("stage", ["write", "consume"])
def test_an_error_on_the_way_closes_the_sink_unfinished(nearest_x2: Path, stage: str) -> None:
    source, sink = ArraySource(np.ones((6, 5, 4), np.float32), np.eye(4)), FailingSink(stage)

    def look(lies: geometry.Geometry, pair: Pair) -> None:
        if stage == "consume":
            raise poan_runtime.PoanError("consume failed")

    with pytest.raises(poan_runtime.PoanError, match=f"{stage} failed"):
        poan_runtime.upscale_file(source, sink, nearest_x2, consumers=[look])
    assert (sink.finished, sink.closed) == (False, True)


def test_a_network_closes_its_engine(nearest_x2: Path) -> None:
    with poan_runtime.load_network(nearest_x2) as network:
        backend = network.opened.backend
        batch = np.ones((1, 1, 16, 16), np.float32)
        assert backend.run(batch).shape == (1, 1, 32, 32)
    with pytest.raises(RuntimeError, match="shutdown"):
        backend.run(batch)
