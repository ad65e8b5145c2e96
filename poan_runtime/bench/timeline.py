"""When each batch and each of its stages ran, for chrome://tracing or ui.perfetto.dev."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from poan_runtime.bench.table import STAGE_NAMES


class Span(NamedTuple):
    """A stage of one batch on the host's clock, in milliseconds.

    A device tells only how long a stage took. The stages of a stream follow one another, so each
    begins where the one before ends, and the first where the batch was given to the device.
    """

    stage: str
    start_ms: float
    ms: float


def spans_of(start_ms: float, stages: dict[str, float]) -> list[Span]:
    """The stages of a batch that was given to the device at ``start_ms``.

    >>> spans_of(5.0, {"enqueue": 0.5, "h2d": 1.0, "compute": 4.0})[1:]
    [Span(stage='h2d', start_ms=5.0, ms=1.0), Span(stage='compute', start_ms=6.0, ms=4.0)]
    """
    spans, at = [], start_ms
    for stage, ms in stages.items():
        spans.append(Span(stage, start_ms if stage == "enqueue" else at, ms))
        at += 0 if stage == "enqueue" else ms
    return spans


def trace(models: Sequence[tuple[str, Sequence[Span]]]) -> dict[str, Any]:
    """The spans of each model as trace events: a process per model, a row per stage."""
    events: list[dict[str, Any]] = []
    for process, (label, spans) in enumerate(models):
        rows = list(dict.fromkeys(span.stage for span in spans))
        events.append(_name("process_name", process, 0, label))
        for row, stage in enumerate(rows):
            events.append(_name("thread_name", process, row, STAGE_NAMES.get(stage, stage)))
        for span in spans:
            events.append(
                {
                    "name": STAGE_NAMES.get(span.stage, span.stage),
                    "ph": "X",
                    "pid": process,
                    "tid": rows.index(span.stage),
                    "ts": 1e3 * span.start_ms,
                    "dur": 1e3 * span.ms,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _name(what: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": row, "args": {"name": name}}
