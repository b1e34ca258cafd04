"""Executed notebooks to one self-contained HTML page."""
