"""Ways to spoil a file: bytes, fields of a header, values of a JSON document. All seeded."""

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

MOST = float(np.finfo(np.float32).max)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, 1e-30, 1e30, 352.0, 1e9)
FLOATS += (float("nan"), float("inf"), float("-inf"), MOST, -MOST)
INTEGERS = (0, 1, -1, 2, 3, 7, 8, 127, 255, 256, 348, 540, 32767, -32768, 2**31 - 1, -(2**31))
INTEGERS += (2**63 - 1, -(2**63), 512, 768, 1024, 1536, 1792, 2304, 1002)
VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1, 2, 16, 1.5, 1e308, -1e308, 1e-320, 10**400)
VALUES += ("", "x", "..", "../model.onnx", "/etc/passwd", "a\nb", "\x1b[31m", "\x00", "x" * 5000)
VALUES += ([], [1], {}, {"a": 1}, [[[]]], "model.onnx", "link.onnx", "none", "kspace", "plan")


def spoil_bytes(data: bytes, random: Random) -> bytes:
    """Some bytes changed, cut off, put in or taken out."""
    spoilt = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randrange(len(spoilt) + 1)
        kind = random.randrange(5)
        if kind == 0:
            del spoilt[at:]
        elif kind == 1:
            spoilt[at:at] = random.randbytes(random.randint(1, 9))
        elif kind == 2:
            del spoilt[at : at + random.randint(1, 64)]
        else:
            spoilt[at : at + 1] = random.randbytes(1)
    return bytes(spoilt)


def spoil_header(struct: Any, random: Random) -> None:
    """Some fields of a nibabel header take extreme or odd values."""
    for _ in range(random.choice((1, 1, 2, 3))):
        name = random.choice([n for n in struct.template_dtype.names if n != "magic"])
        field = struct[name]
        if field.dtype.kind == "S":
            struct[name] = random.randbytes(max(1, field.dtype.itemsize))
            continue
        flat = np.atleast_1d(np.array(field))
        index = random.randrange(flat.size)
        if flat.dtype.kind == "f":
            value: Any = random.choice(FLOATS)
        else:
            least, most = np.iinfo(flat.dtype).min, np.iinfo(flat.dtype).max
            value = min(max(random.choice(INTEGERS), least), most)
        with np.errstate(all="ignore"):
            flat[index] = value
        struct[name] = flat if np.ndim(field) else flat[0]


def spoil_document(document: Any, random: Random) -> Any:
    """One value of a JSON document is another, gone, or doubled."""
    document = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 2))):
        holder = document
        key: Any = random.choice([*document]) if document else None
        while key is not None and isinstance(holder[key], dict | list) and holder[key]:
            if random.random() < 0.25:
                break
            holder = holder[key]
            key = random.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
        if key is None:
            return document
        if random.random() < 0.15:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(random.choice(VALUES))
    return document


def write(path: Path, data: bytes) -> Path:
    """Write a file; its path."""
    path.write_bytes(data)
    return path
