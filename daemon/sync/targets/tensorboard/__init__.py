"""``tensorboard:DIR``: event files as TensorBoard reads them, one directory a run (docs/tensorboard.md).

DIR/<project>/<name>-<id>/            the main lane
                          rank1/ …    the others
                          system/ …   what was observed
"""

from daemon.sync.targets.tensorboard.carrying import TensorBoardTarget

__all__ = ["TensorBoardTarget"]
