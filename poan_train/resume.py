"""May a training go on from a checkpoint? Only as the same training, unless a change is permitted.

A run that is resumed with other data or another rate would be neither of the two; and a checkpoint
must never forget what its weights were trained on.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from poan_runtime.errors import PoanError
from poan_train.checkpoint import Facts
from poan_train.config import TrainConfig

SAME = ("lr", "seed", "batch", "patch", "schedule", "warmup", "clip", "ema", "attention_from")
"""Settings of a training that are the same in one that goes on. Its length may change."""


def differences(saved: Facts, asked: Facts, settings: dict[str, Any]) -> list[str]:
    """What ``asked`` with the training's ``settings`` changes of ``saved``, each in words.

    Data count by their files' hashes, wherever they lie; a checkpoint of before hashes were
    recorded by the files' names.
    """
    found = []
    if saved.contrast != asked.contrast:
        found.append(f"contrast {saved.contrast}, now {asked.contrast}")
    if saved.degradation != asked.degradation:
        found.append(f"LR model {_changes(saved.degradation, asked.degradation)}")
    found += _data(saved.training, asked.training)
    for name in SAME:
        if name in saved.training and saved.training[name] != settings[name]:
            option = name.replace("_", "-")
            found.append(f"--{option} {saved.training[name]}, now {settings[name]}")
    return found


def _changes(saved: dict[str, Any], asked: dict[str, Any]) -> str:
    names = [k for k in {**saved, **asked} if saved.get(k) != asked.get(k)]
    return ", ".join(f"{k} {saved.get(k)}, now {asked.get(k)}" for k in names)


def _data(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    if "hashes" in saved:
        before, now = saved["hashes"], asked["hashes"]
    else:
        before, now = ({name: name for name in t.get("data", [])} for t in (saved, asked))
    gone = sorted(name for name, digest in before.items() if digest not in now.values())
    new = sorted(name for name, digest in now.items() if digest not in before.values())
    words = [f"without {_few(gone)}"] * bool(gone) + [f"with {_few(new)}"] * bool(new)
    return [f"data {' and '.join(words)}"] if words else []


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def refuse_changes(path: Path, found: list[str]) -> None:
    """Raises PoanError if there are any."""
    if found:
        raise PoanError(
            f"{path}: --resume goes on with the same training, but this changes {'; '.join(found)}."
            " --allow-changes goes on all the same; --init starts a new training from the weights"
        )


def nothing_trained(config: TrainConfig, training: dict[str, Any]) -> str:
    """Why ``training`` took no step when it went on: how much of its budget it had used.

    >>> nothing_trained(TrainConfig(steps=5), {"steps": 5})
    'nothing trained: --steps counts the earlier run too (used: 5 of 5); say more'
    """
    if config.minutes is not None:
        name, used, of = "--minutes", training["seconds"] / 60, config.minutes
    elif config.cpu_minutes is not None:
        name, used, of = "--cpu-minutes", training["cpu_seconds"] / 60, config.cpu_minutes
    else:
        name, used, of = "--steps", training["steps"], config.steps
    spent = f"{round(used, 2):g} of {of:g}"
    return f"nothing trained: {name} counts the earlier run too (used: {spent}); say more"


def with_history(facts: Facts, earlier: Facts) -> Facts:
    """``facts`` that remember the data and the licence of the ``earlier`` training."""
    known = {k: earlier.training.get(k) for k in ("data", "licence", "steps")}
    before = [*earlier.training.get("before", []), {"contrast": earlier.contrast, **known}]
    return replace(facts, training={**facts.training, "before": before})


def continued(path: Path, saved: Facts, facts: Facts, config: Any, allowed: bool) -> Facts:
    """``facts`` for going on from ``saved``: its licence where none is given, its history.

    Raises PoanError if the training is another one and that is not ``allowed``.
    """
    found = differences(saved, facts, asdict(config))
    if not allowed:
        refuse_changes(path, found)
    old = saved.training
    kept = {"before": old["before"]} if "before" in old else {}
    kept |= {"init": old["init"]} if "init" in old and "init" not in facts.training else {}
    licence = facts.training.get("licence") or old.get("licence", "")
    facts = replace(facts, training={**facts.training, **kept, "licence": licence})
    moved = any(text.startswith(("data", "contrast")) for text in found)
    return with_history(facts, saved) if moved else facts
