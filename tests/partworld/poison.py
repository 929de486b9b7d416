"""A stand-in for masks that must not be read."""

from __future__ import annotations


class Poison:
    """Stands in for a mask: any use of it fails the test."""

    def _fail(self, *arguments, **options):
        raise AssertionError("a renderer's mask was read")

    __getattr__ = __getitem__ = __array__ = __len__ = __iter__ = __eq__ = __gt__ = __bool__ = _fail
