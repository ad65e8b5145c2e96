"""What `poan-run` says of a scan that it has super-resolved."""

from poan_runtime.commands.outputs import Job
from poan_runtime.commands.say import Voice
from poan_runtime.images.formats import HasNiftiHeader
from poan_runtime.images.nifti.header import parse_dtype
from poan_runtime.images.source import Source
from poan_runtime.images.stored import stored_as
from poan_runtime.super_resolve import Outcome


def say_outcome(
    job: Job, outcome: Outcome, warnings: list[str], total_s: float, rounding: float, voice: Voice
) -> None:
    """One line on what was written, and some on what was found; one for each warning.

    ``rounding`` is by how much the voxel type rounds.
    """
    shape = "x".join(map(str, outcome.geometry.fine_shape))
    voice.say(f"{job.output}: {shape}, {outcome.timings.tiles_in_words}, {total_s:.1f} s")
    taken = [outcome.network.taken] if outcome.network.taken else []
    lines = [*taken, *_measured_lines(outcome), *_below_zero_lines(outcome, rounding)]
    if outcome.spread is not None:
        lines.append(str(outcome.spread))
    for line in lines:
        voice.say(f"{job.scan.name}: {line}")
    for warning in warnings:
        voice.warn(f"{job.scan.name}: {warning}")


def _measured_lines(outcome: Outcome) -> list[str]:
    """What the scanner measured of this scan, and what of that the network changed."""
    return [line for line in (outcome.from_which_matrix, outcome.faithfulness) if line]


def half_step(source: Source, dtype: str | None) -> float:
    """By how much the output's voxel type rounds a real value, in the scan's unit."""
    if not isinstance(source, HasNiftiHeader):
        return 0.0
    header = source.header
    wanted = None if dtype is None else parse_dtype(dtype, header)
    return stored_as(header.dtype, header.slope, header.inter, wanted).half_step


def _below_zero_lines(outcome: Outcome, rounding: float) -> list[str]:
    """Ringing in air that was cut off: nothing to worry about. Nothing is said of what would have
    been rounded to 0."""
    found = outcome.below_zero
    if -found.lowest <= rounding:
        return []
    return [
        f"{found.count} voxels were below zero, the lowest {found.lowest:.4g} (ringing beside "
        "edges and in air), and became 0: the scan has none"
    ]
