"""Sweeps: the run of a params file repeated over a grid of values, each cell a run folder of its own."""
