"""The commands: one module for each, with a click command named `command`, imported only when it is chosen.

What may live here: reading options, calling what does the work, printing. `service` holds what the daemon's commands share,
`common` what the reading ones do.
"""
