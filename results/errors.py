"""The error that a user can cause and mend."""


class UserError(Exception):
    """Names the thing, its value and the way out; shown as one sentence, without a traceback."""
