"""What is fuzzed: each target makes one spoilt input and says what came of it.

A target returns ``accepted`` or ``refused`` (a PoanError of one line). Whatever else leaves it is
a finding: another exception, a warning, a partial output, an output that nibabel cannot read.
"""

import contextlib
import functools
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

from poan_runtime.commands.say import printable
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.engines.verify import read_vectors
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.find import Trust, find_model
from poan_runtime.models.manifest import read_manifest
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.super_resolve import upscale_file
from tests.fuzz import mutate
from tests.tiny.models import IDENTITY, graph, manifest

Target = Callable[[Path, Random], str]
SCALINGS = ((1, 0), (0.5, 3), (0, 0), (1e36, -3e38))
"""Slope and intercept; the last gives a slab voxels beyond float32 on both sides."""
LARGEST = 1 << 22
"""Voxels that no result of these inputs can have."""


class Finding(Exception):
    """Something that must not happen."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Warnings are findings; stderr and stdout stay empty."""
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.simplefilter("error")
        yield
    if said.getvalue():
        raise Finding(f"printed {said.getvalue()!r}")


def outcome(work: Callable[[], Any]) -> str:
    """What came of it; raises what is a finding."""
    with watched():
        try:
            work()
        except PoanError as error:
            if "\n" in printable(str(error)) or not str(error):
                raise Finding(f"not one line: {error!r}") from None
            return "refused"
    return "accepted"


def model_folder(folder: Path) -> Path:
    """A tiny network with a manifest and vectors."""
    made = folder / "model"
    if not made.is_dir():
        made.mkdir()
        (made / "model.onnx").write_bytes(graph(2, 16, IDENTITY).SerializeToString())
        tiles = np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
        fine = tiles.repeat(2, 2).repeat(2, 3)
        np.savez(made / "vectors.npz", input_real=tiles, output_real=fine)
        vectors = {"name": "vectors.npz", "sha256": sha256_of(made / "vectors.npz")}
        document = manifest(sha256_of(made / "model.onnx"), vectors=vectors)
        (made / "manifest.json").write_text(json.dumps(document))
    return made


@functools.lru_cache(1)
def network(folder: Path) -> Network:
    """The tiny network, loaded once."""
    return load_network(model_folder(folder), EngineOptions(backend="onnxruntime", threads=1))


def headers(folder: Path, random: Random) -> str:
    """A NIfTI-1, NIfTI-2 or Analyze header with odd fields, through the whole run."""
    kind = random.choice((nib.Nifti1Header, nib.Nifti1Header, nib.Nifti2Header))
    header = kind(endianness=random.choice("<>"))
    shape = random.choice(((9, 7, 3), (9, 7, 3, 2), (9, 7)))
    dtype = np.dtype(random.choice(("u1", "i2", "u2", "i4", "f4", "f8")))
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(np.diag([1, 1, 4, 1.0]), 1)
    header.set_qform(np.diag([1, 1, 4, 1.0]), random.choice((0, 1)))
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = random.choice(SCALINGS)
    mutate.spoil_header(header, random)
    voxels = np.random.default_rng(random.randrange(99)).integers(0, 99, shape).astype(dtype)
    if dtype.kind == "f" and random.random() < 0.5:
        for _ in range(random.choice((1, 2, voxels.size))):
            voxels.flat[random.randrange(voxels.size)] = random.choice(mutate.FLOATS)
    with np.errstate(all="ignore"):
        raw = voxels.astype(header.get_data_dtype() if known(header) else dtype).tobytes("F")
    head = header.binaryblock + bytes(4)
    data = head + bytes(max(0, int(header.single_vox_offset) - len(head))) + raw
    return run_scan(folder, mutate.write(folder / "scan.nii", data), random)


def known(header: Any) -> bool:
    """Whether the header's data type is one that numpy has."""
    try:
        return header.get_data_dtype().kind in "iuf"
    except (nib.spatialimages.HeaderDataError, KeyError):
        return False


def run_scan(folder: Path, scan: Path, random: Random) -> str:
    """Super-resolve; on success nibabel reads the result, else there is none."""
    out = folder / random.choice(("out.nii", "out.nii.gz"))
    axis = random.choice((None, None, 0, 1, 2))

    def run() -> None:
        upscale_file(scan, out, network(folder), Settings(axis=axis, threads=1), scratch=folder)

    for earlier in folder.glob("out.nii*"):
        earlier.unlink()
    came = outcome(run)
    left = [path.name for path in folder.iterdir() if "poan-partial" in path.name]
    if left or (came == "refused" and out.exists()):
        raise Finding(f"left behind: {left or out.name}")
    if came == "accepted":
        image = quiet_load(out)
        slope, inter = image.dataobj.slope, image.dataobj.inter
        if not (np.isfinite(float(inter)) and np.isfinite(float(slope))):
            raise Finding(f"wrote scl_slope {slope}, scl_inter {inter}")
        if np.prod(image.shape) > LARGEST:
            raise Finding(f"wrote {image.shape}")
        with np.errstate(all="ignore"):
            np.asarray(image.dataobj)
    return came


def quiet_load(path: Path) -> Any:
    """nibabel's image, without the lines that it prints about odd headers."""
    with contextlib.redirect_stderr(io.StringIO()):
        return nib.load(path)


def streams(folder: Path, random: Random) -> str:
    """A .nii.gz with spoilt bytes."""
    path = folder / "whole.nii.gz"
    if not path.exists():
        voxels = np.random.default_rng(0).integers(0, 99, (9, 7, 3)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 4, 1.0])), path)
    spoilt = mutate.spoil_bytes(path.read_bytes(), random)
    return run_scan(folder, mutate.write(folder / "scan.nii.gz", spoilt), random)


def manifests(folder: Path, random: Random) -> str:
    """A manifest with odd values, or with spoilt bytes, and links beside it."""
    made = model_folder(folder)
    own = folder / "spoilt"
    if not own.is_dir():
        own.mkdir()
        for name in ("model.onnx", "vectors.npz"):
            os.link(made / name, own / name)
        (own / "link.onnx").symlink_to("/etc/passwd")
    document = json.loads((made / "manifest.json").read_text())
    spoilt = json.dumps(mutate.spoil_document(document, random)).encode()
    if random.random() < 0.2:
        spoilt = mutate.spoil_bytes(spoilt, random)
    mutate.write(own / "manifest.json", spoilt)

    def find() -> None:
        model = find_model(own)
        if model.path.parent != own or model.path.is_symlink():
            raise Finding(f"would load {model.path}")
        json.loads(read_manifest(own).text())
        read_vectors(model.manifest, own)

    return outcome(find)


def vectors(folder: Path, random: Random) -> str:
    """Spoilt vectors whose hash the manifest lists."""
    made = model_folder(folder)
    own = folder / "vectors"
    own.mkdir(exist_ok=True)
    spoilt = mutate.spoil_bytes((made / "vectors.npz").read_bytes(), random)
    mutate.write(own / "vectors.npz", spoilt)
    listed = {"name": "vectors.npz", "sha256": sha256_of(own / "vectors.npz")}
    document = manifest("0" * 64, vectors=listed)
    (own / "manifest.json").write_text(json.dumps(document))
    return outcome(lambda: read_vectors(read_manifest(own), own))


def graphs(folder: Path, random: Random) -> str:
    """A spoilt ONNX file under --trust."""
    made = model_folder(folder)
    spoilt = mutate.spoil_bytes((made / "model.onnx").read_bytes(), random)
    path = mutate.write(folder / "spoilt.onnx", spoilt)
    options = EngineOptions(backend="onnxruntime", threads=1)

    def load() -> None:
        opened = open_backend(find_model(path, Trust(scale=2, tile=16)), options)
        opened.backend.run(np.zeros((1, 1, 16, 16), np.float32))
        opened.backend.close()

    return outcome(load)


def checkpoints(folder: Path, random: Random) -> str:
    """A spoilt checkpoint."""
    from poan_train.checkpoint import load_network as load
    from poan_train.checkpoint import save_checkpoint
    from tests.tiny.networks import facts_of, tiny_network

    path = folder / "whole.pt"
    if not path.exists():
        made = tiny_network()
        save_checkpoint(path, facts_of(made), made.state_dict())
    spoilt = mutate.spoil_bytes(path.read_bytes(), random)
    return outcome(lambda: load(mutate.write(folder / "spoilt.pt", spoilt)))


def dicom(folder: Path, random: Random) -> str:
    """A series of which one file is spoilt."""
    from poan_runtime.images.dicom.read import open_dicom
    from tests.runtime.images.dicom.made import image
    from tests.runtime.images.dicom.made import write as write_dicom

    series = folder / "series"
    if not series.is_dir():
        for k in range(3):
            plane = np.random.default_rng(k).integers(0, 99, (8, 7))
            write_dicom(image(k + 1, (0.0, 0.0, 4.0 * k), plane), series / f"{k}.dcm")
        (folder / "whole.dcm").write_bytes((series / "1.dcm").read_bytes())
    mutate.write(series / "1.dcm", mutate.spoil_bytes((folder / "whole.dcm").read_bytes(), random))

    def read() -> None:
        with contextlib.closing(open_dicom(series)) as source:
            source.read_slices(2, 0, 1)

    return outcome(read)


TARGETS: dict[str, tuple[Target, float]] = {
    "headers": (headers, 0.4),
    "streams": (streams, 0.12),
    "manifests": (manifests, 0.2),
    "vectors": (vectors, 0.08),
    "graphs": (graphs, 0.1),
    "checkpoints": (checkpoints, 0.05),
    "dicom": (dicom, 0.05),
}
"""Targets by name, and which share of the cases each has."""
