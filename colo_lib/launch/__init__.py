"""Start, ready, drain, stop: the two workloads and what they share. Imports no pandas."""
