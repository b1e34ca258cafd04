"""One module a command of `colo`; each imports what is heavy only when it runs."""
