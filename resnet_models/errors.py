"""The one error of this package that a user can cause by a description."""


class SpecError(ValueError):
    """A network description that cannot be honoured: which field, its value, why, and what to do instead."""

    def __init__(self, field: str, value: object, reason: str, cure: str) -> None:
        """Keep the four parts apart: callers print them their own way."""
        super().__init__(field, value, reason, cure)  # all as args: the error crosses processes by pickle
        self.field = field
        self.value = value
        self.reason = reason
        self.cure = cure

    def __str__(self) -> str:
        """Return `field is value: reason; cure`."""
        shown = list(self.value) if isinstance(self.value, tuple) else self.value
        return f"{self.field} is {shown!r}: {self.reason}; {self.cure}"
