"""The errors of this package: one message each, written for the person who reads it."""


class DataError(Exception):
    """Says which file or folder, what was found, what was expected and what to do."""


class SplitError(DataError):
    """The same, for the stored split of a training set."""
