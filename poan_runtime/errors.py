"""What reaches the user as one line: the error that ends a command, and what is said on the way."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Is given one line at a time of what a long work is at; a command prints it."""


class PoanError(Exception):
    """Something the user can mend: one line that names the file, what was expected and what came.

    Every function of poan raises it for bad input; another exception is a defect of poan's.

    >>> try:
    ...     raise PoanError("scan.nii: no such file")
    ... except PoanError as error:
    ...     print(error)
    scan.nii: no such file
    """
