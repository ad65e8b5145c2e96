"""Which modules must stay in float32: the smallest set found by halving, in emulated arithmetic.

Strongly typed engines take the precision from the graph, so nothing behind the graph can be
bisected; the modules are, before export. The set is irreducible: with any one of its members in
half precision the gate fails.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from poan_export.gate.parity import Gate
from poan_export.precision.half_emulation import run_half
from poan_export.precision.islands import DTYPE, Half, fixed_islands, in_half, outermost
from poan_runtime.errors import PoanError

Passes = Callable[[Sequence[str]], bool]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Islands beside the fixed ones, and the number of runs it took."""

    islands: tuple[str, ...]
    trials: int


def children_of(network: nn.Module, name: str) -> list[str]:
    """Qualified names of a module's parts, in order."""
    module = network.get_submodule(name) if name else network
    return [f"{name}.{child}" if name else child for child, _ in module.named_children()]


def minimise(
    candidates: Sequence[str],
    kept: Sequence[str],
    passes: Passes,
    parts: Callable[[str], list[str]],
) -> list[str]:
    """An irreducible subset of ``candidates`` that, beside ``kept``, makes ``passes`` true.

    ``passes([*kept, *candidates])`` must be true. One candidate alone is replaced by the parts of
    it that suffice, where they do.

    >>> need = {"b.1", "c"}
    >>> names = {"b": ["b.0", "b.1"]}
    >>> def passes(s): return all(any(n == i or n.startswith(i + ".") for i in s) for n in need)
    >>> minimise(["a", "b", "c", "d"], [], passes, lambda n: names.get(n, []))
    ['b.1', 'c']
    """
    if passes(kept):
        return []
    if len(candidates) == 1:
        inner = parts(candidates[0])
        if not inner or not passes([*kept, *inner]):
            return [*candidates]
        found = minimise(inner, kept, passes, parts)
        return [*candidates] if found == inner and len(inner) > 1 else found
    middle = len(candidates) // 2
    first, second = candidates[:middle], candidates[middle:]
    of_second = minimise(second, [*kept, *first], passes, parts)
    of_first = minimise(first, [*kept, *of_second], passes, parts)
    return [*of_first, *of_second]


def find_islands(network: nn.Module, gate: Gate, half: Half) -> Found:
    """Search on the tiles that fail without islands; ``network`` is rewritten, in float32.

    Raises PoanError where even float32 throughout does not meet the tolerances of ``half``.
    """
    fixed = fixed_islands(network)
    trials = 0

    def failing(islands: Sequence[str], tiles: Sequence[int]) -> list[int]:
        nonlocal trials
        trials += 1
        run = run_half(
            in_half(network, half, outermost([*fixed, *islands])),
            gate.cases.batch[list(tiles)],
            DTYPE[half],
        )
        part = gate.part(tiles)
        failed = {c.case for c in part.check_reduced("", run.stages, half) if not c.passed}
        return [i for i, case in gate.names() if case in failed]

    def passes_on(tiles: Sequence[int]) -> Passes:
        return lambda islands: not failing(islands, tiles)

    everything = range(len(gate.cases.items))
    tiles = failing([], everything)
    whole = children_of(network, "")
    found: list[str] = []
    while tiles:  # tiles that only fail once others are mended join the search
        if left := failing(whole, tiles):
            names = [gate.cases.items[i].name for i in left]
            raise PoanError(f"{half}: no set of islands meets the tolerance on {names}")
        search = tuple(tiles)
        found = minimise(whole, [], passes_on(search), lambda n: children_of(network, n))
        left = failing(found, everything)
        if not set(left) - set(tiles):
            break
        tiles = sorted({*tiles, *left})
    return Found(islands=outermost(found), trials=trials)
