"""Runs to W&B, through its own package: to its server, or offline into the directories that `wandb sync` takes (docs/wandb.md)."""

from daemon.sync.targets.wandb.target import WandbTarget

__all__ = ["WandbTarget"]
