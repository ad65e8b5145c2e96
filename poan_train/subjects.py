"""Whose volumes a folder holds, of which contrast; who trains, and who is held out."""

import csv
import gzip
import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poan_runtime.errors import PoanError, Say
from poan_runtime.images.nifti.header import LONGEST_HEADER, OWN_NOTE, parse_header

CONTRASTS = ("T1", "T2", "PD", "FLAIR")
EVERY = ("all", "any", "MR")
"""Words for volumes of every contrast."""
CONTRAST_WORDS = (
    f"{', '.join(CONTRASTS)} are those whose names say so (scan_T2.nii.gz) or --table; "
    f"{', '.join(EVERY[:-1])} and {EVERY[-1]} all mean those of every such contrast"
)
RESULT_NAME = re.compile(r"_desc-sr(?=$|_)")
"""In the name of what poan-run and poan-bids write."""
GZIP_MAGIC = b"\x1f\x8b"
IXI_NAME = re.compile(r"^(IXI\d+)-(Guys|HH|IOP)-\d+-(T1|T2|PD)$")


def contrast_word(word: str) -> str:
    """The contrast as it is written here, however it was typed.

    >>> [contrast_word(word) for word in ("t2", "flair", "ALL", "CT")]
    ['T2', 'FLAIR', 'all', 'CT']
    """
    names = {name.lower(): name for name in (*CONTRASTS, *EVERY)}
    return names.get(word.lower(), word)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of the training folder."""

    path: Path
    contrast: str
    subject: str

    @property
    def is_ixi(self) -> bool:
        return IXI_NAME.match(stem(self.path)) is not None


def stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def contrast_of(name: str) -> str | None:
    """The word T1, T2, PD or FLAIR in a file name, at a word boundary or beside ``_`` or ``-``.

    >>> contrast_of("IXI002-Guys-0828-T2.nii.gz"), contrast_of("sub-1_T1w.nii"), contrast_of("ST1")
    ('T2', 'T1', None)
    """
    found = re.search(
        r"(?:^|[\W_])(FLAIR|PD|T[12])(?![0-9])(?:W|w)?(?=$|[\W_])", name, re.IGNORECASE
    )
    return found[1].upper() if found else None


NOT_A_SUBJECT = (
    r"(?:(?:t1|t2|pd|flair)(?:w|c|ce|gd)?|mr\d*|ses(?:sion)?[-_]?\d+|study[-_]?\d+|run[-_]?\d+"
    r"|ax(?:ial)?|tra(?:nsversal)?|cor(?:onal)?|sag(?:ittal)?|gd|ce)"
)
"""A token of a name that tells contrast, session, study, run or plane."""


def subject_of(name: str) -> str:
    """Who was scanned, from a file name: BIDS ``sub-``, IXI, patientNN or subjNN.

    Else what is left of the name without the tokens of contrast, session, study, run and plane at
    either end.

    >>> subject_of("T1_openms_patient01_study2.nii.gz"), subject_of("T1_ds002748_sub-37.nii.gz")
    ('patient01', 'sub-37')
    >>> subject_of("BraTS2021_00001_t1.nii.gz"), subject_of("T2_S01_ses1_ax.nii")
    ('BraTS2021_00001', 'S01')
    """
    found = re.search(r"(sub-[A-Za-z0-9]+|IXI\d+|(?:patient|subject|subj)[-_]?\d+)", name)
    if found:
        return found[1]
    left = stem(Path(name))
    while (less := _without_token(left)) != left:
        left = less
    return left


def _without_token(name: str) -> str:
    """``name`` less one token at its end or else at its start."""
    less = re.sub(rf"[-_.]{NOT_A_SUBJECT}$", "", name, flags=re.IGNORECASE)
    return less if less != name else re.sub(rf"(?i)^{NOT_A_SUBJECT}[-_.]", "", name)


def is_result(path: Path) -> bool:
    """Whether poan made the file, by its name or by its header's description: no truth.

    A file whose header cannot be read is none; what is wrong with it is said where it is read.
    """
    if RESULT_NAME.search(stem(path)):
        return True
    try:
        with path.open("rb") as file:
            opened = gzip.open if file.read(2) == GZIP_MAGIC else open
        with opened(path, "rb") as file:
            header = parse_header(file.read(LONGEST_HEADER), path, detached=False)
    except (PoanError, OSError, EOFError, zlib.error):
        return False
    return OWN_NOTE.search(bytes(header.struct["descrip"].item())) is not None


def quietly(line: str) -> None:
    """Tells nobody of the ``line``."""


def find_sources(
    folder: Path, contrast: str, table: Path | None = None, say: Say = quietly
) -> list[Source]:
    """The folder's volumes of one contrast (of every one for a word of EVERY), sorted by name.

    A TSV with the columns file, contrast and subject overrides what the names say. What poan made
    itself is left out, and ``say`` hears how many. Raises PoanError if the folder has none.
    """
    if folder.is_file():
        raise PoanError(f"{folder}: is a file; name its folder")
    if not folder.is_dir():
        raise PoanError(f"{folder}: no such folder of training volumes")
    named = _read_table(table) if table else {}
    sources = []
    for path in sorted(p for p in folder.rglob("*.nii*") if re.search(r"\.nii(\.gz)?$", p.name)):
        row = named.get(path.name) or named.get(str(path.relative_to(folder))) or {}
        has = row.get("contrast") or contrast_of(stem(path))
        if has and contrast in (has, *EVERY):
            who = row.get("subject") or subject_of(path.name)
            sources.append(Source(path=path, contrast=has, subject=who))
    kept = [source for source in sources if not is_result(source.path)]
    if left_out := len(sources) - len(kept):
        say(f"{folder}: {left_out} result{'s' * (left_out > 1)} of poan left out")
    if not kept:
        raise PoanError(f"{folder}: no {_wanted(contrast)}, or --table must list it")
    return kept


def _wanted(contrast: str) -> str:
    """What a volume's name must say."""
    if contrast in EVERY:
        names = f"{', '.join(CONTRASTS[:-1])} or {CONTRASTS[-1]}"
        return f"NIfTI volume whose name says {names}; it must, as scan_T2.nii.gz does"
    return (
        f"NIfTI volume of contrast {contrast}; its name must contain that word, "
        f"as scan_{contrast}.nii.gz does"
    )


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except OSError as error:
        raise PoanError(f"{path}: {error.strerror}") from None
    missing = {"file", "contrast", "subject"} - set(rows[0] if rows else ())
    if missing:
        raise PoanError(
            f"{path}: needs tab-separated columns file, contrast, subject; no {missing}"
        )
    return {row["file"]: row for row in rows}


def set_aside(sources: Sequence[Source], subjects: Sequence[str]) -> list[Source]:
    """The sources of everyone but ``subjects``. Raises PoanError for a subject who is not there."""
    missing = set(subjects) - {s.subject for s in sources}
    if missing:
        raise PoanError(
            f"--hold-out: no volume of {', '.join(sorted(missing))}; the subjects are "
            f"{', '.join(sorted({s.subject for s in sources}))}"
        )
    return [s for s in sources if s.subject not in subjects]


def split_by_subject(
    sources: Sequence[Source], share: float, seed: int = 0
) -> tuple[list[Source], list[Source]]:
    """(train, validation), no subject in both.

    IXI's own split where all files are IXI and there are enough: 500 subjects in order of their
    number train, the next 70 test, the last 6 validate. Otherwise ``share`` of the subjects, at
    least one if there are two, drawn by a hash of name and seed.
    """
    subjects = sorted({s.subject for s in sources})
    if all(s.is_ixi for s in sources) and len(subjects) > 570:
        held_out, train = set(subjects[570:576]), set(subjects[:500])
    else:
        count = min(len(subjects) - 1, max(1, round(share * len(subjects)))) if share else 0
        order = sorted(subjects, key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).digest())
        held_out = set(order[:count])
        train = set(subjects) - held_out
    return [s for s in sources if s.subject in train], [s for s in sources if s.subject in held_out]
