"""For the objects that Ray Tune wants to pickle into its experiment folder, and that nobody
restores from there.
"""

from typing import Any


class DriverOnly:
    """Pickles as a plain object:

    its files and locks belong to this process, its record is the run folder.
    """

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return object, ()
