"""Frames in, numbers with their intervals out; no file is opened and nothing is drawn."""
