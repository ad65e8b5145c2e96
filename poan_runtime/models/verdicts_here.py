"""What `--verify` found on this machine, where the manifest itself is not to be written.

A shipped model lies among the files of the package, which belong to pip (its record holds a hash
of each), and may be read-only. Its verdicts go to the cache folder, under the hash of the manifest
that they complete: another release of the package, or another export, starts anew.
"""

import dataclasses
import os
from pathlib import Path

from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile, cache_folder, cache_place, sha256_of
from poan_runtime.models.manifest import MANIFEST_NAME, Manifest, read_manifest

SHIPPED = Path(__file__).parent / "shipped"


def manifest_here(folder: Path) -> Manifest:
    """The manifest of a folder, completed by the verdicts of this machine."""
    manifest = read_manifest(folder)
    if is_own(folder):
        return manifest
    try:
        found = read_manifest(cache_place() / _name(folder))
    except (PoanError, RuntimeError):  # none, damaged, or no home: nothing was found yet
        return manifest
    files = {(file.name, file.sha256): file.parity for file in found.files}
    return dataclasses.replace(
        manifest,
        files=tuple(
            dataclasses.replace(file, parity=files.get((file.name, file.sha256), file.parity))
            for file in manifest.files
        ),
        cpu_precisions=found.cpu_precisions,
        device_verdicts=found.device_verdicts,
    )


def keep_verdicts(folder: Path, manifest: Manifest) -> Path:
    """Write a manifest that --verify completed: in its place, or beside it in the cache folder.

    The file that was written.
    """
    target = folder / MANIFEST_NAME if is_own(folder) else cache_folder() / _name(folder)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with WholeFile(target) as file:
        file.write(manifest.text().encode())
    return target


def is_own(folder: Path) -> bool:
    """Whether the folder's manifest may be changed: no part of the package, and writable."""
    shipped = folder.resolve().is_relative_to(SHIPPED.resolve())
    return not shipped and os.access(folder, os.W_OK)


def _name(folder: Path) -> Path:
    return Path("verdicts") / f"{sha256_of(folder / MANIFEST_NAME)}.json"
