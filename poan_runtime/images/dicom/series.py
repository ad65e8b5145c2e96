"""A folder of DICOM files sorted into stacks: one scan each, named, and one of them chosen."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.files import read_header, refuse_other_kinds
from poan_runtime.images.dicom.frames import Frame, frames_of
from poan_runtime.images.dicom.recognise import has_magic
from poan_runtime.images.dicom.stack import Stack, build_stack, without_repeats

MOST_FILES = 100_000
SAME_COSINE = 3
"""Decimals of a direction cosine to which slices of one stack agree."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """What goes together: frames of one series, size, orientation and kind.

    ``key`` is what ``--series`` takes: the series number, with a letter where one number holds
    several.
    """

    key: str
    frames: tuple[Frame, ...]
    warnings: tuple[str, ...] = ()

    @property
    def candidate(self) -> bool:
        """Whether it is taken without being named: magnitudes, no localizer, not poan's own."""
        first = self.first
        return first.component == "magnitude" and not (first.localizer or first.by_poan)

    @property
    def kind(self) -> str:
        """In a word or two: what decides whether it is taken."""
        first = self.first
        return "localizer" if first.localizer else "by poan" if first.by_poan else first.component

    @property
    def first(self) -> Frame:
        """Any one of the frames."""
        return self.frames[0]

    def stack(self) -> Stack:
        """The frames as slices and volumes; PoanError if they do not make any."""
        stack = build_stack(self.key, self.frames)
        return dataclasses.replace(stack, warnings=(*self.warnings, *stack.warnings))


def find_series(path: Path) -> tuple[list[Series], list[str]]:
    """Everything in a DICOM file or below a folder, and one line for each file that is broken.

    Other files are passed over. A file that alone was named raises its line.
    """
    if not path.is_dir():
        return _sorted(_frames(path)), []
    files = (f for f in _files(path) if has_magic(f) and f.name != "DICOMDIR")
    found, refused = find_series_in(files)
    if not found:
        raise PoanError(_nothing(path, refused))
    return found, refused


def find_series_in(files: Iterable[Path]) -> tuple[list[Series], list[str]]:
    """The same of files that are named one by one."""
    frames: list[Frame] = []
    refused: list[str] = []
    for file in files:
        try:
            frames += _frames(file)
        except PoanError as error:
            refused.append(str(error))
    return _sorted(frames), refused


def choose(series: Sequence[Series], wanted: str | None, path: Path) -> Series:
    """The one that ``wanted`` names by key or series UID, or the only one that can be meant."""
    if wanted is not None:
        named = [s for s in series if wanted in (s.key, s.first.series_uid)]
        if len(named) == 1:
            return named[0]
        raise PoanError(f"{path}: --series {wanted}: expected one of {_keys(series)}")
    candidates = [s for s in series if s.candidate]
    if len(candidates) == 1:
        return candidates[0]
    if len(series) == 1:
        return series[0]
    scanned = [s for s in series if not s.first.by_poan] or series
    own = len(series) - len(scanned)
    held = f"{len(series)} series" + (f", {own} of them by poan" if own else "")
    raise PoanError(f"{path}: holds {held}; name one with --series: {_keys(scanned)}")


def table(series: Sequence[Series]) -> list[str]:
    """One line per series: key, size, kind, description, and what is wrong with it."""
    lines = []
    for one in series:
        first = one.first
        try:
            size = "x".join(map(str, one.stack().shape))
            remark = ""
        except PoanError as error:
            size, remark = f"{len(one.frames)} images", f"  ({error})"
        lines.append(f"{one.key:8} {size:18} {one.kind:10} {_plain(first.description)}{remark}")
    return lines


def _plain(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:64]


def _keys(series: Sequence[Series]) -> str:
    shown = ", ".join(s.key for s in series[:12])
    return shown + (", ..." if len(series) > 12 else "")


def _nothing(path: Path, refused: Sequence[str]) -> str:
    if not refused:
        return f"{path}: there is no DICOM file in it"
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return refused[0] + more


def _files(folder: Path) -> Iterator[Path]:
    count = 0
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        count += 1
        if count > MOST_FILES:
            raise PoanError(f"{folder}: holds over {MOST_FILES} files; name a smaller folder")
        yield file


def _frames(path: Path) -> list[Frame]:
    header = read_header(path)
    refuse_other_kinds(header, path)
    return frames_of(header, path)


def _sorted(frames: Sequence[Frame]) -> list[Series]:
    """Frames of one series, size, spacing, orientation and kind together."""
    groups: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[_group(frame)].append(frame)
    ordered = sorted(groups.values(), key=lambda group: (group[0].series_number, group[0].order))
    return [_series(group, key) for group, key in zip(ordered, _named(ordered), strict=True)]


def _series(frames: Sequence[Frame], key: str) -> Series:
    kept, repeats = without_repeats(frames)
    warnings = (f"{repeats} files repeat an image and are left out",) if repeats else ()
    return Series(key=key, frames=tuple(kept), warnings=warnings)


def _named(groups: Sequence[Sequence[Frame]]) -> list[str]:
    """The series number of each group, lettered where it occurs again.

    Letters count a, b, ..., z, aa, ab, ...
    """
    numbers = [group[0].series_number for group in groups]
    seen: dict[int, int] = defaultdict(int)
    names = []
    for number in numbers:
        alone = numbers.count(number) == 1
        names.append(str(number) if alone else f"{number}{_letters(seen[number])}")
        seen[number] += 1
    return names


def _letters(n: int) -> str:
    """
    >>> _letters(0), _letters(25), _letters(26)
    ('a', 'z', 'aa')
    """
    last = "abcdefghijklmnopqrstuvwxyz"[n % 26]
    return last if n < 26 else _letters(n // 26 - 1) + last


def _group(frame: Frame) -> tuple[object, ...]:
    rounded = frame.orientation and tuple(round(c, SAME_COSINE) + 0.0 for c in frame.orientation)
    spacing = frame.spacing and tuple(round(s, 4) for s in frame.spacing)
    size = (frame.rows, frame.columns, frame.signed, frame.inverted)
    return (frame.study_uid, frame.series_uid, frame.kind, *size, rounded, spacing)
