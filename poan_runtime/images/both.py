"""Two outputs of one run: every slab goes to both."""

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry
from poan_runtime.images.source import Sink, Slab


class Both:
    """A `Sink` made of two. Each appears whole or not at all, the second after the first."""

    def __init__(self, first: Sink, second: Sink) -> None:
        self._first, self._second = first, second

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of both, once each."""
        return tuple(dict.fromkeys((*self._first.warnings, *self._second.warnings)))

    def begin(self, geometry: Geometry) -> None:
        """See `Sink.begin`."""
        self._first.begin(geometry)
        self._second.begin(geometry)

    def write(self, volume: int, start: int, fine: Slab) -> None:
        """See `Sink.write`."""
        self._first.write(volume, start, fine)
        self._second.write(volume, start, fine)

    def finish(self, remark: str | None = None) -> None:
        """See `Sink.finish`."""
        self._first.finish(remark)
        try:
            self._second.finish(remark)
        except PoanError as error:
            raise PoanError(f"{error}; the other output is complete") from None

    def close(self) -> None:
        """See `Sink.close`."""
        try:
            self._first.close()
        finally:
            self._second.close()
