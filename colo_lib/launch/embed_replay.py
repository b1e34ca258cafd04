"""A forward pass of `embed` captured once as a CUDA graph: the same work without the host's launch of each kernel.

Needs torch, nothing else of this package: `embed_worker` imports it as the file beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# bf16 unit vectors by other attention kernels: components differ in the third digit.
TOLERANCE = 0.02


class Replay:
    """One pass for one shape, (sequences, tokens) ids without padding, which needs no mask.

    `pool(states, mask)` gives the vectors. Raises RuntimeError where the captured pass gives other vectors than the
    pass launched by hand.
    """

    def __init__(self, model: Any, inputs: Any, pool: Callable[[Any, Any], Any]) -> None:
        import torch

        self.torch, self.ids = torch, inputs.to("cuda")
        mask = torch.ones_like(self.ids)

        def vectors() -> Any:
            return pool(model(input_ids=self.ids).last_hidden_state, mask)

        with torch.inference_mode():
            for _ in range(2):  # libraries choose their kernels and make their workspaces before the capture
                by_hand = vectors()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream_to_capture(torch), capture_error_mode="thread_local"):
                self.vectors = vectors()
            self.graph.replay()
            furthest = float((self.vectors - by_hand).abs().max())
        if not furthest <= TOLERANCE:
            raise RuntimeError(
                f"a captured pass gives vectors that differ by {furthest:.3g} from those launched by hand"
            )

    def __call__(self, inputs: Any) -> Any:
        """Unit vectors (sequences, width) of `inputs`, back on the host."""
        with self.torch.inference_mode():
            self.ids.copy_(inputs, non_blocking=True)
            self.graph.replay()
            return self.vectors.cpu()


def stream_to_capture(torch: Any) -> Any:
    """The current stream, to which a process may be held; None, for torch to choose, where that is the default one."""
    stream = torch.cuda.current_stream()
    return None if stream == torch.cuda.default_stream() else stream
