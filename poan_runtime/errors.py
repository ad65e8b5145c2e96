"""The one exception that commands turn into a line and exit status 2."""


class PoanError(Exception):
    """Something the user can mend: one line that names the file, what was expected and what came.

    Every function of poan raises it for bad input; another exception is a defect of poan's.

    >>> try:
    ...     raise PoanError("scan.nii: no such file")
    ... except PoanError as error:
    ...     print(error)
    scan.nii: no such file
    """
