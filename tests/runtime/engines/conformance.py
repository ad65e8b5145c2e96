"""What every `Backend` must do; the test of each implementation calls it."""

import numpy as np

from poan_runtime.engines.backend import Backend


def check_backend(backend: Backend, *, tile: int, scale: int) -> None:
    """The backend, which is closed at the end, answers (N, 1, tile, tile) tiles."""
    first = np.random.default_rng(0).uniform(size=(3, 1, tile, tile)).astype(np.float32)
    second = np.ascontiguousarray(first[::-1])
    before = first.copy()
    answer = backend.run(first)
    assert answer.shape == (3, 1, scale * tile, scale * tile)
    assert answer.dtype == np.float32
    assert answer.flags.c_contiguous
    assert np.array_equal(first, before), "the batch is left as it was"

    kept = answer.copy()
    backend.run(second)
    assert np.array_equal(answer, kept), "an engine returns a new array"

    waits = [backend.start(first), backend.start(second)]
    started = [wait() for wait in waits]
    again = [backend.start(second)(), backend.start(second)()]
    assert np.array_equal(started[0], kept), "an answer outlives the next two batches"
    assert np.array_equal(started[1], again[0])
    if not backend.fills_batches:
        alone = backend.run(first[:1])
        assert np.array_equal(alone, kept[:1]), "a tile is answered alike in any batch"
    backend.close()
    backend.close()
