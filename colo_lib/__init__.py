"""Measure whether an embedding model and a generative LLM can share a GPU."""

__version__ = "0.1.0"
