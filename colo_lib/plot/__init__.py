"""Frame in, figure out: never parses, never computes a result."""
