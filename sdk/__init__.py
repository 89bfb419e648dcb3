"""stepd: log every step of a training run; nothing waits and nothing is lost.

    import sdk
    run = sdk.init(project="digits", config={"lr": 1e-3})
    for step in range(1000):
        sdk.log({"train/loss": loss})
    sdk.finish()

This file is what `import sdk` costs, so it imports nothing: names are fetched when they are first used. `run`, `log`,
`config` and `summary` are those of the current run; `init` puts them here and `finish` takes them away (`sdk._globals`).
The package is also loaded under the name `stepd`, so everything inside imports relatively.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is; importing typing would cost more than everything else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from . import data_types as data_types
    from . import plot as plot
    from . import testing as testing
    from ._api import _attach as _attach
    from ._api import attach as attach
    from ._api import finish as finish
    from ._api import init as init
    from ._api import join as join
    from ._compat import AlertLevel as AlertLevel
    from ._compat import agent as agent
    from ._compat import api as api
    from ._compat import controller as controller
    from ._compat import ensure_configured as ensure_configured
    from ._compat import login as login
    from ._compat import patched as patched
    from ._compat import require as require
    from ._compat import setup as setup
    from ._compat import sweep as sweep
    from ._compat import teardown as teardown
    from ._compat import termerror as termerror
    from ._compat import termlog as termlog
    from ._compat import termsetup as termsetup
    from ._compat import termwarn as termwarn
    from ._config import Config as Config
    from ._globals import alert as alert
    from ._globals import define_metric as define_metric
    from ._globals import link_model as link_model
    from ._globals import log_artifact as log_artifact
    from ._globals import log_code as log_code
    from ._globals import log_model as log_model
    from ._globals import mark_preempting as mark_preempting
    from ._globals import pin_config_keys as pin_config_keys
    from ._globals import restore as restore
    from ._globals import save as save
    from ._globals import unwatch as unwatch
    from ._globals import use_artifact as use_artifact
    from ._globals import use_model as use_model
    from ._globals import watch as watch
    from ._handler import LogHandler as LogHandler
    from ._metric import Metric as Metric
    from ._run import Run as Run
    from ._summary import Summary as Summary
    from ._track import track as track
    from .artifacts.artifact import Artifact as Artifact
    from .artifacts.artifact import ArtifactTTL as ArtifactTTL
    from .errors import AuthenticationError as AuthenticationError
    from .errors import CommError as CommError
    from .errors import ConfigError as ConfigError
    from .errors import DamageError as DamageError
    from .errors import Error as Error
    from .errors import NotFoundError as NotFoundError
    from .errors import StoreError as StoreError
    from .errors import UnsupportedError as UnsupportedError
    from .errors import UsageError as UsageError
    from .plot import plot_table as plot_table
    from .plot import visualize as visualize
    from .query.api import Api as Api
    from .query.sql.query import sql as sql
    from .reader import open_store as open_store
    from .settings import Settings as Settings
    from .values.annotations import Classes as Classes
    from .values.audio import Audio as Audio
    from .values.embedding import Embedding as Embedding
    from .values.graph import Graph as Graph
    from .values.histogram import Histogram as Histogram
    from .values.html import Html as Html
    from .values.image import Image as Image
    from .values.interactive import Plotly as Plotly
    from .values.molecule import Molecule as Molecule
    from .values.object3d import Object3D as Object3D
    from .values.object3d import box3d as box3d
    from .values.register import register_value as register_value
    from .values.table import EvalTable as EvalTable
    from .values.table import JoinedTable as JoinedTable
    from .values.table import Table as Table
    from .values.video import Video as Video

    log: Callable[..., None]
    config: Config
    summary: Summary

__version__ = "0.1.0"

run: Run | None = None
"""The current run, or None."""

# Where each name comes from: module to names. Submodules that are names themselves stand under "".
_HOMES = {
    "": "data_types plot testing",
    "_api": "_attach attach finish init join",
    "_compat": "AlertLevel agent api controller ensure_configured login patched require setup sweep "
    "teardown termerror termlog termsetup termwarn",
    "_config": "Config",
    "_globals": "alert config define_metric link_model log log_artifact log_code log_model mark_preempting pin_config_keys "
    "restore save summary unwatch use_artifact use_model watch",
    "_handler": "LogHandler",
    "_metric": "Metric",
    "_run": "Run",
    "_summary": "Summary",
    "artifacts.artifact": "Artifact ArtifactTTL",
    "_track": "track",
    "errors": "AuthenticationError CommError ConfigError DamageError Error NotFoundError StoreError UnsupportedError "
    "UsageError",
    "plot": "plot_table visualize",
    "query.api": "Api",
    "query.sql.query": "sql",
    "reader": "open_store",
    "settings": "Settings",
    "values.annotations": "Classes",
    "values.audio": "Audio",
    "values.embedding": "Embedding",
    "values.graph": "Graph",
    "values.histogram": "Histogram",
    "values.html": "Html",
    "values.interactive": "Plotly",
    "values.molecule": "Molecule",
    "values.object3d": "Object3D box3d",
    "values.register": "register_value",
    "values.table": "EvalTable JoinedTable Table",
    "values.video": "Video",
    "values.image": "Image",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", "run", *(name for name in _HOME if name[0] != "_")]  # noqa: PLE0604 - the names of the table


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if not home:
        return import_module(f"{__name__}.{name}")
    # Invariant: a name that `init` or `finish` rebinds meanwhile stays as they set it.
    value = getattr(import_module(f"{__name__}.{home}"), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
