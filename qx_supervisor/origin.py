"""The run that a result, or an error, comes from: what their cards say of it, in a later cell as well as in its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """A run.

    Attributes:
        label: Its label, or "".
        key: Its key, or "".
        backend: The backend's name, or "".
        is_embedded: Whether the embedded service stood for IBM Quantum.
        shots: The number of shots, or None.
        url: The job's page at IBM Quantum, or "".
    """

    label: str = ""
    key: str = ""
    backend: str = ""
    is_embedded: bool = False
    shots: int | None = None
    url: str = ""

    def names(self, backend: str = "") -> list[tuple[str, str]]:
        """What it is known by, and where it was, as names and text.

        Args:
            backend: The backend's name, where only the result knows it.
        """
        name = self.backend or backend
        found = (
            ("label", self.label),
            ("key", self.key),
            ("backend", place(name, is_embedded=self.is_embedded) if name else ""),
        )
        return [(name, value) for name, value in found if value]


UNKNOWN = Origin()
"""Of what no run of this program has told: a result that was made otherwise, or by an earlier release."""


def place(backend: str, *, is_embedded: bool) -> str:
    """A backend's name, and that it is not IBM's own, if so."""
    return f"{backend} (embedded service)" if is_embedded else backend
