"""How a run died, or where it hangs (docs/why.md): what was stored of its end, what the machine tells, what its threads are doing."""
