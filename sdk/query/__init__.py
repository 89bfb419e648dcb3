"""What commands, notebooks, reports and the dashboard ask of stored runs: tables of runs, expressions, curves, comparisons, SQL, and
W&B's reading names. Each is a module of its own, imported where it is used; nothing here prints or draws.
"""
