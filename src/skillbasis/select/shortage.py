"""What a strategy raises when it has fewer rows to give than the budget asks for."""

from __future__ import annotations

from ..errors import UsageError


class TooFewRows(UsageError):  # noqa: N818 (a request that cannot be met)
    """A strategy leaves rows out, and those that remain are fewer than the budget."""

    def __init__(self, message: str, available: int) -> None:
        super().__init__(message)
        self.available = available
        """Rows that it can give."""
