"""Artifacts: named, versioned sets of files in the store (docs/artifacts.md).

What lives here: the format (`format`), taking files in the training's process (`staging`), making a version of them (`making`,
which the keeper runs), finding versions (`shelf`), giving the files back (`fetching`), and the object that users hold (`artifact`).
A run's methods are in `sdk._artifacts`.
"""
