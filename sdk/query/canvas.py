"""The figure that `figure` makes. A module of its own, as it cannot be imported where matplotlib is not installed."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure


class Picture(Figure):  # type: ignore[misc]
    """A figure that a notebook shows, without pyplot and whatever matplotlib's own backend for notebooks is."""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        """PNG of twice the dots, and the size in which it is to be shown."""
        out = io.BytesIO()
        scale = 2
        self.savefig(out, format="png", dpi=self.dpi * scale)
        width, height = (int(inches * self.dpi) for inches in self.get_size_inches())
        return out.getvalue(), {"width": width, "height": height}
