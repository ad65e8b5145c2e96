"""A series becomes derived series: which rule fits each of its stacks, and the model run on it.

UIDs follow from the instances that went in, the model's hash and the settings, and the time that
instances state is when the last image came. So the same images give the same instances, byte for
byte, however often they are worked on.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom.uid import UID

from poan_runtime.engines.backend import EngineOptions
from poan_runtime.errors import PoanError
from poan_runtime.files import sync_folder
from poan_runtime.images.dicom.derived import DerivedSeries
from poan_runtime.images.dicom.files import MR, read_header
from poan_runtime.images.dicom.provenance import Identity
from poan_runtime.images.dicom.read import DicomSource
from poan_runtime.images.dicom.series import Series, find_series_in
from poan_runtime.images.dicom.stack import Stack
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.report.provenance import provenance_of
from poan_runtime.services.dicom_node.config import Rule
from poan_runtime.services.dicom_node.queue import Result
from poan_runtime.services.dicom_node.route import facts_of, first_rule
from poan_runtime.super_resolve import upscale_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """What all series share."""

    rules: tuple[Rule, ...]
    options: EngineOptions
    uid_root: str = ""
    burn_in: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One series. ``out`` is a new folder for what is derived, ``arrived`` when its last came.

    ``out`` lies beside the folder ``root``, to which the files of results are relative.
    """

    series_uid: str
    sender: str
    files: tuple[Path, ...]
    out: Path
    root: Path
    arrived: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker says: results for peers, or an error; no results mean that no rule fits."""

    series_uid: str
    results: tuple[Result, ...] = ()
    error: str = ""
    slices: int = 0
    seconds: float = 0.0


class Networks:
    """Models that are loaded once and stay."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._loaded: dict[str, Network] = {}

    def get(self, name: str) -> Network:
        """The model of that name, ready."""
        if name not in self._loaded:
            self._loaded[name] = load_network(name, self._options)
        return self._loaded[name]

    def close(self) -> None:
        """Free what the engines hold."""
        for network in self._loaded.values():
            network.close()


def work(task: Task, how: How, networks: Networks) -> Answer:
    """Super-resolve a series; what is wrong with it is in the answer."""
    start = time.perf_counter()
    try:
        with _new_folder(task.out):
            results, slices = _derive(task, how, networks)
    except PoanError as error:
        return Answer(series_uid=task.series_uid, error=_without_paths(str(error), task))
    seconds = time.perf_counter() - start
    return Answer(
        series_uid=task.series_uid, results=tuple(results), slices=slices, seconds=seconds
    )


def _derive(task: Task, how: How, networks: Networks) -> tuple[list[Result], int]:
    found, refused = find_series_in(task.files)
    if refused:
        raise PoanError(f"{len(refused)} of {len(task.files)} files: {refused[0]}")
    results: list[Result] = []
    slices = 0
    for series in found:
        rule = _rule_of(series, task, how)
        if rule is None:
            continue
        stack = series.stack()
        folder = task.out / series.key
        _super_resolve(stack, folder, rule, task, how, networks.get(rule.model))
        instances = tuple(_instances(folder, task.root))
        results += [Result(peer=peer, instances=instances) for peer in rule.targets]
        slices += len(instances)
    return _joined(results), slices


def _rule_of(series: Series, task: Task, how: How) -> Rule | None:
    """The rule for a stack of magnitudes that is no localizer; others stay as they are."""
    if not series.candidate:
        return None
    header = read_header(series.first.path)
    return first_rule(how.rules, facts_of(series.first, header, task.sender))


def _super_resolve(
    stack: Stack, folder: Path, rule: Rule, task: Task, how: How, network: Network
) -> None:
    settings = Settings(threads=how.options.threads)
    with DicomSource(stack, folder.parent, folder.parent) as source:

        def opens(runs: Network) -> DerivedSeries:
            return DerivedSeries(
                source,
                folder,
                provenance_of(runs, settings),
                identity=Identity(root=how.uid_root or None, seed=seed_of(stack)),
                burn_in=how.burn_in,
                scratch=folder.parent,
                made=datetime.datetime.fromtimestamp(int(task.arrived)),
            )

        upscale_file(source, opens, network, settings, scratch=folder.parent)


def seed_of(stack: Stack) -> str:
    """A digest of the instances that went in: with one more of them the result is another."""
    instances = sorted({f.instance_uid for volume in stack.frames for f in volume})
    return hashlib.sha256("\0".join(instances).encode()).hexdigest()


def _instances(folder: Path, root: Path) -> Iterator[tuple[str, str, str]]:
    """(instance, class, file) of each file that was written."""
    for path in sorted(folder.iterdir()):
        instance = str(read_header(path).SOPInstanceUID)
        yield instance, str(UID(MR)), path.relative_to(root).as_posix()


def _joined(results: Sequence[Result]) -> list[Result]:
    """One result for each peer."""
    by_peer: dict[str, tuple[tuple[str, str, str], ...]] = {}
    for result in results:
        by_peer[result.peer] = by_peer.get(result.peer, ()) + result.instances
    return [Result(peer=peer, instances=instances) for peer, instances in by_peer.items()]


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """A folder that is on the disk at the end, or gone after an error."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise PoanError(f"cannot make a folder: {error.strerror}") from None
    try:
        yield
        sync_folder(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _without_paths(line: str, task: Task) -> str:
    """Names of folders say nothing to a peer or in a metric."""
    for path in sorted({str(task.root), *(str(file.parent) for file in task.files)}, reverse=True):
        line = line.replace(f"{path}/", "")
    return line
