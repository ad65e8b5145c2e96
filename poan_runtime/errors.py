"""The one exception that commands turn into a line and exit status 2."""


class PoanError(Exception):
    """Something the user can mend: names the file, what was expected and what came."""
