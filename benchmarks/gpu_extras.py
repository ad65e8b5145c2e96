"""Whether each extra resolves on a package index, and whether its libraries find one another.

    python -m benchmarks.gpu_extras             # what pip would install, for every extra and pair
    python -m benchmarks.gpu_extras --libraries # and what the GPU wheels' libraries need; 3 GB

Nothing is installed. Each row is `pip install --dry-run` of the plain install with the extras that
the documentation names, in an environment taken as empty. Of what is not wholly on PyPI (TensorRT's
libraries lie on NVIDIA's own index) the package itself is asked for what it declares.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from benchmarks import record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
RESULT = record.RESULTS / "gpu_extras.json"
NOT_ON_PYPI = ("tensorrt-cu12", "tensorrt-cu13")
BUILT_HERE = ("pycuda",)
"""On PyPI as source alone, which needs CUDA's compiler."""
GPU = (("gpu",), ("tensorrt-rtx-cu12",), ("tensorrt-rtx-cu13",), ("gpu", "tensorrt-rtx-cu13"))
OF_THE_SYSTEM = re.compile(
    r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|stdc\+\+|gcc_s|cuda|nvidia-ml|z)\.so.*)"
)
"""What a host with a driver has; libcuda and libnvidia-ml are the driver's."""
LIST = r"([a-z0-9-]+(?:,[a-z0-9-]+)*)"
NAMED = re.compile(rf"(?:poan|\.)\[{LIST}\]|EXTRAS={LIST}")
Found = dict[str, Any]


def extras() -> dict[str, list[str]]:
    """Requirements by extra, those of other extras of poan among them; the plain install as ''."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, list[str]] = {"": project["dependencies"]}
    for extra, lines in project["optional-dependencies"].items():
        found[extra] = []
        for line in lines:
            own = Requirement(line)
            found[extra] += found[next(iter(own.extras))] if own.name == "poan" else [line]
    return found


def named(root: Path = ROOT) -> set[tuple[str, ...]]:
    """Extras that README, docs and container files name, alone or together."""
    files = [root / "README.md", *root.glob("docs/*.md"), *root.glob("docker/*")]
    text = "\n".join(path.read_text("utf-8") for path in files)
    return {tuple(sorted((one or two).split(","))) for one, two in NAMED.findall(text)}


def documented(root: Path = ROOT) -> list[tuple[str, ...]]:
    """Those that are named together."""
    return sorted(group for group in named(root) if len(group) > 1)


def rows() -> list[tuple[str, ...]]:
    """Each extra alone, and the documented groups; without what needs another index."""
    elsewhere = {*NOT_ON_PYPI, *BUILT_HERE}
    known = extras()
    alone = [(extra,) for extra in known if extra and extra not in elsewhere]
    groups = [group for group in documented() if not elsewhere & set(group)]
    return [*alone, *groups]


def requirements(group: Sequence[str]) -> list[str]:
    """Of the plain install and these extras."""
    known = extras()
    return [*known[""], *(line for extra in group for line in known[extra])]


def pip(*arguments: str) -> list[Found]:
    """What ``pip install --dry-run`` would install; ValueError with pip's last line."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(done.stderr.strip().splitlines()[-1])
        found: list[Found] = json.loads(report.read_text("utf-8"))["install"]
        return found


def resolved(group: Sequence[str]) -> Found:
    """Versions by package, or pip's last line."""
    try:
        found = pip(*requirements(group))
    except ValueError as error:
        return {"error": str(error)}
    return {one["metadata"]["name"]: one["metadata"]["version"] for one in found}


def declared(requirement: str) -> Found:
    """Version and dependencies that a package declares."""
    (found,) = pip("--no-deps", requirement)
    metadata = found["metadata"]
    return {"version": metadata["version"], "requires": metadata.get("requires_dist", [])}


def libraries(group: Sequence[str]) -> Found:
    """Libraries that an extra's wheels need and none of them has, by the library that needs them.

    Every shared library of every wheel is read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", scratch]
        subprocess.run([*command, *requirements(group)], check=True)
        needed: dict[str, list[str]] = {}
        for wheel in sorted(Path(scratch).glob("*.whl")):
            needed |= of_wheel(wheel)
    missing = {name: absent(names, needed) for name, names in needed.items()}
    return {
        "read": len(needed),
        "missing": {name: names for name, names in sorted(missing.items()) if names},
    }


def of_wheel(wheel: Path) -> dict[str, list[str]]:
    """NEEDED entries by shared library."""
    found = {}
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        for entry in archive.namelist():
            if re.search(r"\.so(\.\d+)*$", entry):
                path = archive.extract(entry, scratch)
                found[Path(entry).name] = needed_by(path)
                Path(path).unlink()
    return found


def needed_by(path: str) -> list[str]:
    """NEEDED entries of one library, by readelf."""
    done = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", done.stdout)


def absent(names: Iterable[str], present: Iterable[str]) -> list[str]:
    """Of ``names`` what neither the wheels nor the system have."""
    there = set(present)
    return sorted(n for n in names if n not in there and not OF_THE_SYSTEM.fullmatch(n))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("--libraries", action="store_true", help="download the GPU wheels and read them")
    args = p.parse_args()
    earlier = record.read(RESULT) or {"libraries": {}}  # of libraries, what was read last stays
    document: Found = {"resolved": {}, "declared": {}, "libraries": earlier["libraries"]}
    for group in rows():
        document["resolved"][",".join(group)] = found = resolved(group)
        print(f"{','.join(group):24} {found.get('error') or f'{len(found)} packages'}", flush=True)
    for extra in (*NOT_ON_PYPI, *BUILT_HERE):
        document["declared"][extra] = declared(extras()[extra][0])
        print(f"{extra:24} {document['declared'][extra]}", flush=True)
    for group in GPU if args.libraries else ():
        document["libraries"][",".join(group)] = read = libraries(group)
        print(f"{','.join(group):24} {read}", flush=True)
    record.write(RESULT, document)


if __name__ == "__main__":
    main()
