"""Find a model, read its manifest, and let nothing run whose hash the manifest does not list."""

import dataclasses
import os
import re
from pathlib import Path

from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.manifest import (
    MANIFEST_NAME,
    PENDING,
    VERSION,
    Attention,
    BatchRange,
    Intensity,
    Manifest,
    ModelFile,
    NetworkFacts,
    NoRoot,
    Port,
)
from poan_runtime.models.verdicts_here import manifest_here
from poan_runtime.models.weights_outside import refuse_weights_outside

MODELS = Path(__file__).parent / "shipped"
FILE_SUFFIXES = (".onnx", ".plan", ".json", ".pt")
"""A name that ends so is a file's, never a shipped model's."""
ALIASES = {f"{word}_x{scale}": f"mr_x{scale}" for word in ("t1", "t2") for scale in (2, 3, 4)}
"""Names of models of one contrast that the model of every contrast stands in for, if none of
that name is shipped."""
AUTO = ("auto", "auto_x2", "auto_x3", "auto_x4")
"""Names that leave the model to the scan's contrast; without a scale it is 2."""
ONLY_PORT = ""
"""As a port's name: the only one that the graph has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model file that its manifest vouches for (or the user, with ``--trust``)."""

    manifest: Manifest = dataclasses.field(repr=False)
    file: ModelFile
    path: Path
    notices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trust:
    """The facts that a bare .onnx without a manifest does not state."""

    scale: int
    tile: int
    halo: int = 0
    overlap: int | None = None
    grid: str = "centre"


def shipped_models() -> list[Path]:
    """Folders of the models in the package, by name; the names are what `load_network` takes.

    >>> all((folder / "manifest.json").is_file() for folder in shipped_models())
    True
    """
    return sorted(path.parent for path in MODELS.glob(f"*/{MANIFEST_NAME}"))


def find_model(
    name: str | Path, trust: Trust | None = None, precision: str = "fp32", *, judged: bool = True
) -> Model:
    """The model called ``name``: a shipped one, a folder with a manifest, or a model file.

    A bare word is the name of a shipped model, whatever lies in the current folder; a path has a
    separator (``./t2_x2``), is a `Path`, or ends as a model file does. From a folder the ONNX
    file of the wanted precision is taken, else the first one that is
    listed. ``trust`` serves a bare .onnx, and a plan whose hash the manifest does not list.
    A file whose parity verdict is fail is refused, unless ``judged`` is false
    (to judge it anew).
    """
    path, notices = located(name)
    if path.is_dir():
        if not exists(path / MANIFEST_NAME):
            raise PoanError(f"{path}: no {MANIFEST_NAME}: not a folder that poan-export wrote")
        manifest = manifest_here(path)
        found = _verified(manifest, _preferred(manifest, precision, path), path, judged)
        return dataclasses.replace(found, notices=(*notices, *found.notices))
    if path.name == MANIFEST_NAME:
        return find_model(path.parent, precision=precision, judged=judged)
    if not path.with_name(MANIFEST_NAME).is_file():
        return _trusted(path, trust)
    manifest = manifest_here(path.parent)
    file = manifest.file(path.name)
    if trust is not None and path.suffix == ".plan":
        return _trusted_plan(manifest, file, path)
    if file is None:
        listed = ", ".join(entry.name for entry in manifest.files)
        raise PoanError(f"{path}: expected a file that the manifest lists ({listed})")
    return _verified(manifest, file, path.parent, judged)


def located(name: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Where a model lies, by the rule of `find_model`, and what must be said about that."""
    path = Path(name)
    if not is_bare(name):
        if not exists(path):
            raise PoanError(f"{name}: no such file or folder")
        return path, ()
    shipped, here = MODELS / shipped_name(str(name)), f".{os.sep}{name}"
    if os.path.isfile(shipped / MANIFEST_NAME):
        if not exists(path / MANIFEST_NAME):
            return shipped, ()
        return shipped, (f"{name} is the shipped model; for the folder of that name write {here}",)
    known = ", ".join([*(model.name for model in shipped_models()), *other_names()])
    if name in AUTO:
        raise PoanError(f"{name}: goes by a scan's contrast, and here is none; name one of {known}")
    known = ", ".join([*AUTO, *([known] if known else [])])
    if exists(path):
        raise PoanError(f"{name}: no shipped model ({known}); for what lies here write {here}")
    hint = _nearest(str(name))
    raise PoanError(f"{name}: no such file or folder, nor a shipped model ({known}){hint}")


def _nearest(name: str) -> str:
    """What to say of a name that is formed like a shipped model's."""
    formed = re.fullmatch(r"\w+_x(\d+)", name)
    if formed is None:
        return ""
    if is_shipped(f"mr_x{formed[1]}"):
        return f"; mr_x{formed[1]} is for every contrast"
    return f"; there is none for x{formed[1]}"


def is_shipped(name: str) -> bool:
    """Whether a name is a shipped model's, another name of one, or one of `AUTO`.

    >>> is_shipped("auto_x3"), is_shipped("scan.nii.gz")
    (True, False)
    """
    known = name in AUTO or os.path.isfile(MODELS / shipped_name(name) / MANIFEST_NAME)
    return is_bare(name) and known


def other_names() -> dict[str, str]:
    """Each name of `ALIASES` that is in use, and the shipped model that it means."""
    meant = {name: shipped_name(name) for name in ALIASES}
    return {name: model for name, model in meant.items() if name != model and is_shipped(model)}


def shipped_name(name: str) -> str:
    """The shipped model that a bare name means: itself, or what it is an alias for.

    >>> shipped_name("mr_x2"), shipped_name("pan")
    ('mr_x2', 'pan')
    """
    is_there = os.path.isfile(MODELS / name / MANIFEST_NAME)
    return name if is_there else ALIASES.get(name, name)


def auto_model(name: str, contrast: str | None) -> str:
    """The shipped model for a scan of ``contrast`` (``T1``, ``T2``, ...; None for unknown).

    ``name`` is one of `AUTO`. There is a model of every contrast for each scale, and it is what
    a contrast without a model of its own gets.

    >>> auto_model("auto_x3", "FLAIR")
    'mr_x3'
    """
    scale = name.removeprefix("auto").removeprefix("_x") or "2"
    own = f"{(contrast or 'mr').lower()}_x{scale}"
    return shipped_name(own) if os.path.isfile(MODELS / own / MANIFEST_NAME) else f"mr_x{scale}"


def is_bare(name: str | Path) -> bool:
    """Whether a name can only be a shipped model's.

    >>> is_bare("t2_x2"), is_bare("./t2_x2"), is_bare("model.onnx"), is_bare(Path("t2_x2"))
    (True, False, False, False)
    """
    separators = [os.sep] + ([os.altsep] if os.altsep else [])
    if isinstance(name, Path) or any(separator in name for separator in separators):
        return False
    return name not in (".", "..") and not name.endswith(FILE_SUFFIXES)


def exists(path: Path) -> bool:
    """`Path.exists`, also for a name that no file system would take."""
    return os.path.exists(path)


def _preferred(manifest: Manifest, precision: str, folder: Path) -> ModelFile:
    graphs = [file for file in manifest.files if file.kind == "onnx"]
    if not graphs:
        raise PoanError(f"{folder}: the manifest lists no ONNX file; name the plan to run")
    return next((file for file in graphs if file.precision == precision), graphs[0])


def _verified(manifest: Manifest, file: ModelFile, folder: Path, judged: bool) -> Model:
    path = folder / file.name
    if not os.path.isfile(path):  # false also for a name that no file system takes
        raise PoanError(f"{path}: listed in the manifest, but there is no such file")
    if (found := sha256_of(path)) != file.sha256:
        raise PoanError(
            f"{path}: expected sha256 {file.sha256[:12]}..., got {found[:12]}...; "
            "the file is not the one that was checked: export it again"
        )
    parity = file.parity or manifest.parity
    if parity.verdict == "fail" and judged:
        raise PoanError(f"{path}: its parity verdict is fail; export it again")
    notices = (
        (f"{path.name}: not yet compared with PyTorch (parity pending)",)
        if parity.verdict == "pending"
        else ()
    )
    return Model(manifest=manifest, file=file, path=path, notices=notices)


def _trusted_plan(manifest: Manifest, file: ModelFile | None, path: Path) -> Model:
    """A plan that the user vouches for; what it is, the manifest must tell all the same."""
    like = file or next((entry for entry in manifest.files if entry.engine is not None), None)
    if like is None:
        raise PoanError(f"{path}: --trust: expected a plan among the manifest's files, got none")
    trusted = dataclasses.replace(like, name=path.name, sha256=sha256_of(path), parity=PENDING)
    notice = f"{path.name}: runs as native code whatever its hash (--trust)"
    return Model(manifest=manifest, file=trusted, path=path, notices=(notice,))


def _trusted(path: Path, trust: Trust | None) -> Model:
    if path.suffix == ".pt":
        raise PoanError(f"{path}: a checkpoint; poan-export --ckpt {path} makes a model of it")
    if trust is None:
        raise PoanError(
            f"{path}: expected {MANIFEST_NAME} beside it, got none; "
            "if you know this network, add --trust --scale S --tile T"
        )
    if path.suffix != ".onnx":
        raise PoanError(f"{path}: --trust takes an .onnx file; a plan needs its manifest")
    if trust.scale < 1 or trust.tile < 1:
        raise PoanError("--trust: expected --scale and --tile of at least 1 with it")
    refuse_weights_outside(path)
    file = ModelFile(
        name=path.name, kind="onnx", precision="fp32", islands=(), sha256=sha256_of(path)
    )
    overlap = min(trust.tile // 8, trust.tile - 1) if trust.overlap is None else trust.overlap
    manifest = Manifest(
        manifest_version=VERSION,
        name=path.stem,
        network=NetworkFacts(arch="unknown", parameters=0, config={}),
        scale=trust.scale,
        contrast="unknown",
        tile=trust.tile,
        batch=BatchRange(min=1, opt=8, max=64),
        halo=trust.halo,
        overlap=overlap,
        gmac_per_tile=0.0,
        intensity=Intensity(rule="percentile-nonzero", percentile=99.9),
        grid="kspace" if trust.grid == "kspace" else "centre",
        square_root=NoRoot(scheme="none"),
        attention=Attention(form="none"),
        opset=1,
        inputs=Port(name=ONLY_PORT),
        outputs=Port(name=ONLY_PORT),
        files=(file,),
        vectors=None,
        relative_error_floor=1e-6,
        parity=PENDING,
        training={},
        created_by={},
    )
    notice = f"{path.name}: runs without a manifest (--trust); nothing vouches for it"
    return Model(manifest=manifest, file=file, path=path, notices=(notice,))
