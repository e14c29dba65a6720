"""Figures for the page and the plots, and how they are spelled."""

from __future__ import annotations

from ..harness import Row

#: Whose CPU a row tells of; ``bystander`` is one decode agent whose engines want nothing.
PARTS = ("prefill", "etcd", "proxy", "decode", "bystander")


def per_room(row: Row, part: str) -> float:
    """CPU microseconds a room."""
    return float(row[f"{part}_cpu"] * 1e6 / row["rooms"])


def number(value: float | None, digits: int = 2) -> str:
    """With so many significant digits, thousands apart; a dash for nothing."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def percent(share: float) -> str:
    """A share of one."""
    return f"{share * 100:.0f} %"
