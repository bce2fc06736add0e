"""Fixtures of more than one test file of this room."""

from tests.unit.data.cifar_archives import official, server

__all__ = ["official", "server"]
