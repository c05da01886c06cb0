"""Wording shared by the SDK's messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s: "1 picture", "2 pictures"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
