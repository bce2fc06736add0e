"""Fixtures of every test of the doctor."""

from tests.unit.doctor.one_row import context, own_folders, trained

__all__ = ["context", "own_folders", "trained"]
