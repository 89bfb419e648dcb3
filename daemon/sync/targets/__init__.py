"""One module for each kind of target; `daemon.sync.registry` names them."""
