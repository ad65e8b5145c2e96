"""What a BIDS dataset holds that can be super-resolved, and what each result is called.

Names follow BIDS 1.10 (https://bids-specification.readthedocs.io): a file is entities, a suffix
and an extension, ``sub-01_ses-1_acq-ax_T2w.nii.gz``.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poan_runtime.errors import PoanError

CONTRASTS = {"T1w": "T1", "T2w": "T2", "PDw": "PD", "FLAIR": "FLAIR", "inplaneT2": "T2"}
"""Suffixes that are taken, and the contrast of each."""
DESCRIPTION = "dataset_description.json"
EXTENSIONS = (".nii.gz", ".nii")

LONG_NAMES = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
    "modality": "mod",
    "inversion": "inv",
    "processing": "proc",
}
"""Entities that a filter file may call by their long name; the others have but one."""

SHORT_NAMES = (
    *LONG_NAMES.values(),
    *("task", "run", "echo", "flip", "mt", "part", "chunk", "datatype", "suffix", "extension"),
)
"""What a filter may ask for, in short."""

Filters = Mapping[str, Mapping[str, Any]]
"""For each suffix, what each entity must be: one value, one of several, or None for absent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsScan:
    """One anatomical scan of a dataset; ``relative`` is its path inside of it, with slashes."""

    path: Path
    relative: str
    entities: Mapping[str, str]
    suffix: str

    @property
    def stem(self) -> str:
        """The file's name without extension, which no other scan of the dataset has."""
        return _stem(self.path.name)

    def derived(self, scale: int) -> str:
        """Where the result goes inside of the derivative, without extension.

        >>> scan = BidsScan(path=Path("sub-1_run-2_T2w.nii"), suffix="T2w", entities={},
        ...                 relative="sub-1/anat/sub-1_run-2_T2w.nii")
        >>> scan.derived(2)
        'sub-1/anat/sub-1_run-2_res-2x_desc-sr_T2w'
        """
        folder, _, _ = self.relative.rpartition("/")
        before = self.stem.removesuffix(f"_{self.suffix}")
        return f"{folder}/{before}_res-{scale}x_desc-sr_{self.suffix}"


def find_scans(
    dataset: Path,
    *,
    subjects: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filters: Filters | None = None,
) -> list[BidsScan]:
    """The scans of `CONTRASTS` in the ``anat`` folders of a raw dataset, by name.

    ``subjects`` and ``sessions`` are labels with or without ``sub-`` and ``ses-``; none means
    all. A phase image (``part-phase``) is no magnitude and is left out. Raises PoanError where
    this is no raw dataset, or where a label is not in it.
    """
    check_dataset(dataset)
    scans = sorted(_all_scans(dataset), key=lambda scan: scan.relative)
    scans = _of_labels(scans, "sub", subjects, "--participant-label")
    scans = _of_labels(scans, "ses", sessions, "--session-label")
    return [scan for scan in scans if _fits(scan, (filters or {}).get(scan.suffix, {}))]


def check_dataset(dataset: Path) -> None:
    """Refuse what is no raw BIDS dataset."""
    path = dataset / DESCRIPTION
    if not path.is_file():
        raise PoanError(f"{dataset}: expected a BIDS dataset, there is no {DESCRIPTION} in it")
    if read_object(path).get("DatasetType", "raw") != "raw":
        raise PoanError(f"{path}: expected a raw dataset, this is a derivative")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; anything else is a PoanError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PoanError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PoanError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(found, dict):
        raise PoanError(f"{path}: expected a JSON object, got a {type(found).__name__}")
    return found


def read_filters(path: Path) -> Filters:
    """A ``--bids-filter-file``: ``{"t2w": {"session": "1", "acquisition": null}}``.

    Queries are suffixes, in any case; entities have their long or their short name.
    """
    suffixes = {suffix.lower(): suffix for suffix in CONTRASTS}
    filters: dict[str, Mapping[str, Any]] = {}
    for query, wanted in read_object(path).items():
        if query.lower() not in suffixes:
            raise PoanError(f"{path}: expected one of {', '.join(suffixes)}, got {query}")
        if not isinstance(wanted, dict):
            raise PoanError(f"{path}: {query}: expected an object, got {wanted!r}")
        short = {LONG_NAMES.get(str(key), str(key)): value for key, value in wanted.items()}
        if unknown := short.keys() - set(SHORT_NAMES):
            raise PoanError(f"{path}: {query}: there is no entity {min(unknown)}")
        filters[suffixes[query.lower()]] = short
    return filters


def inherited(dataset: Path, scan: BidsScan) -> dict[str, Any]:
    """The scan's metadata by BIDS's inheritance: each JSON file above it that applies to it.

    A file applies if its suffix is the scan's and its entities are among the scan's; one deeper
    in the tree has the last word.
    """
    folders = [dataset]
    for part in scan.relative.split("/")[:-1]:
        folders.append(folders[-1] / part)
    found: dict[str, Any] = {}
    for folder in folders:
        applying = [path for path in folder.glob(f"*{scan.suffix}.json") if _applies(path, scan)]
        for path in sorted(applying, key=lambda path: len(path.name)):
            found |= read_object(path)
    return found


def _applies(path: Path, scan: BidsScan) -> bool:
    entities, suffix = _parts(path.name.removesuffix(".json"))
    return suffix == scan.suffix and entities.items() <= scan.entities.items()


def _all_scans(dataset: Path) -> Iterator[BidsScan]:
    for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*"):
        for path in dataset.glob(pattern):
            if not path.name.endswith(EXTENSIONS):
                continue
            entities, suffix = _parts(_stem(path.name))
            if suffix in CONTRASTS and entities.get("part") != "phase":
                relative = path.relative_to(dataset).as_posix()
                yield BidsScan(path=path, relative=relative, entities=entities, suffix=suffix)


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")


def _parts(stem: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a name without extension.

    >>> _parts("sub-01_acq-ax_T2w")
    ({'sub': '01', 'acq': 'ax'}, 'T2w')
    """
    *pairs, suffix = stem.split("_")
    split = [pair.partition("-") for pair in pairs]
    return {name: label for name, _, label in split}, suffix


def _of_labels(
    scans: list[BidsScan], entity: str, labels: Sequence[str], option: str
) -> list[BidsScan]:
    """The scans with one of the labels; each label must have one."""
    if not labels:
        return scans
    wanted = {label.removeprefix(f"{entity}-") for label in labels}
    if missing := wanted - {scan.entities.get(entity) for scan in scans}:
        names = ", ".join(sorted(missing))
        raise PoanError(f"{option}: no scan that can be super-resolved has {entity}-{names}")
    return [scan for scan in scans if scan.entities.get(entity) in wanted]


def _fits(scan: BidsScan, wanted: Mapping[str, Any]) -> bool:
    own = {"datatype": "anat", "suffix": scan.suffix}
    own["extension"] = scan.path.name.removeprefix(scan.stem)
    found = {**scan.entities, **own}
    return all(_is_one_of(found.get(entity), value) for entity, value in wanted.items())


def _is_one_of(found: str | None, wanted: Any) -> bool:
    """Whether an entity's label is what a filter wants; numbers count as numbers.

    >>> _is_one_of("01", 1), _is_one_of(None, None), _is_one_of("ax", ["ax", "sag"])
    (True, True, True)
    """
    if isinstance(wanted, list):
        return any(_is_one_of(found, one) for one in wanted)
    if found is None or wanted is None:
        return found is wanted
    both = found.lstrip("."), str(wanted).lstrip(".")
    if all(text.isdecimal() for text in both):
        return int(both[0]) == int(both[1])
    return both[0] == both[1]
