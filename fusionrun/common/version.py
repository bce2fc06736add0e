"""The version: its one home, which the package's build reads too."""

__version__ = "0.2.0"
