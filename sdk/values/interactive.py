"""Figures that a browser draws: `sdk.Plotly`, and the files of Bokeh. Stored as their packages' JSON."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from . import sources
from .blobs import snapshot
from .media import Media

_PLOTLY = "Plotly()"
_BOKEH = "Bokeh()"


class Plotly(Media):
    """A figure of plotly, as the JSON that plotly writes of it, here and now (docs/media.md#figures-of-plotly).

    Args:
        val: A figure of plotly; or of matplotlib (axes and pyplot too), which plotly converts as well as it can.

    Raises:
        ValueError: Something else, or a figure of matplotlib that plotly cannot convert. `Image(figure)` takes any.
    """

    _type: ClassVar[str] = "plotly-file"

    def __init__(self, val: Any) -> None:
        figure = val if is_plotly(val) else _converted(val)
        # Not validated again: plotly did so when the figure was built.
        text: str = figure.to_json(validate=False)
        self._blob = snapshot(text.encode(), {"media": self._type, "format": "plotly.json"})

    @classmethod
    def make_plot_media(cls, val: Any) -> Media:
        """`Plotly(val)`; a figure of matplotlib that shows pictures becomes an `Image`."""
        figure = _matplotlib_figure(val)
        if figure is not None and _has_pictures(figure):
            from .image import Image

            return Image(figure)
        return cls(val)

    def describe(self) -> dict[str, Any]:
        return {"format": "plotly.json", "data": self._blob}


class Bokeh(Media):
    """A figure of Bokeh, by the path of the JSON file that Bokeh wrote of it, stored as it is.

    Raises:
        TypeError: It is no path. A document is written by ``json.dump(document.to_json(), file)``.
        ValueError: It is no JSON.
        OSError: The file cannot be read.
    """

    _type: ClassVar[str] = "bokeh-file"

    def __init__(self, data_or_path: Any) -> None:
        import json

        if not sources.is_path(data_or_path):
            raise TypeError(
                f"{_BOKEH} is given {type(data_or_path).__qualname__}, expected the path of a JSON file: "
                "json.dump(document.to_json(), file) writes one"
            )
        content = sources.read_path(data_or_path, _BOKEH)
        try:
            json.loads(content)
        except ValueError as error:
            raise ValueError(f"{_BOKEH} is given a file that is no JSON: {error}") from None
        self._blob = snapshot(content, {"media": self._type, "format": "bokeh.json"})

    def describe(self) -> dict[str, Any]:
        return {"format": "bokeh.json", "data": self._blob}


def is_plotly(value: Any) -> bool:
    """Whether it is a figure of plotly."""
    module = sys.modules.get("plotly.basedatatypes")
    return module is not None and isinstance(value, module.BaseFigure)


def _matplotlib_figure(value: Any) -> Any:
    from .pixels import figure_of

    return figure_of(value)


def _has_pictures(figure: Any) -> bool:
    return any(axes.images for axes in figure.axes)


def _converted(value: Any) -> Any:
    figure = _matplotlib_figure(value)
    if figure is None:
        raise ValueError(
            f"{_PLOTLY} is given {type(value).__module__}.{type(value).__qualname__}, expected a figure of plotly, or of "
            "matplotlib"
        )
    if _has_pictures(figure):
        raise ValueError(
            f"{_PLOTLY} is given a figure that shows pictures, which plotly cannot convert; Image(figure) takes it"
        )
    try:
        from plotly.tools import mpl_to_plotly

        return mpl_to_plotly(figure)
    except Exception as error:  # its converter knows old versions of matplotlib only
        raise ValueError(f"{_PLOTLY}: plotly cannot convert this figure ({error!r}); Image(figure) takes it") from error
