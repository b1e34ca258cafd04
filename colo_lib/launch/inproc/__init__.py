"""The embedder inside vLLM's worker process: imported by the engine's interpreter, so it needs nothing but torch.

No module in here imports what the record side alone has (pydantic, psutil, pyarrow).
"""
