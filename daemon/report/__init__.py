"""Reports: runs as one HTML file that opens without a network and can be mailed. Reading and budgets are in `gather`, `charts`, `media`
and `facts`; how it looks in `page` and the files of `assets`; `markup` is the only place where text becomes HTML. Nothing prints.
"""
