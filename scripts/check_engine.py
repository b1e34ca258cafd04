"""Last step of the engine environment's set-up, run by its own interpreter: does vLLM come up on the CPU here?"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings

# Each fails to import beside a torch of another build, and vLLM imports what it finds. A text-only server needs none.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def main() -> int:
    """Print the versions; 1 with a sentence for each thing that is wrong."""
    problems = [
        f"{name} is installed, which breaks vLLM beside this torch: {sys.executable} -m pip uninstall -y {name}"
        for name in UNWANTED
        if importlib.util.find_spec(name)
    ]
    if not problems:
        problems = import_all()
    for problem in problems:
        print(f"set-up: the engine environment does not work: {problem}", file=sys.stderr)
    return 1 if problems else 0


def import_all() -> list[str]:
    """Import what a server and an embedding process import; the problems found, none when all is well."""
    warnings.simplefilter("ignore")
    try:
        torch, transformers, vllm = (importlib.import_module(name) for name in ("torch", "transformers", "vllm"))
        importlib.import_module("vllm.entrypoints.openai.api_server")
        importlib.import_module("vllm._custom_ops")  # loads the library of kernels that this processor can run
        if not hasattr(torch.ops._C, "rms_norm"):  # vLLM itself only warns
            return ["vLLM's kernels did not load; without libnuma.so.1 they do not"]
        platform = importlib.import_module("vllm.platforms").current_platform
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    print(f"set-up: vllm {vllm.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    return [] if platform.is_cpu() else [f"vLLM chose the platform {platform}, not the CPU"]


if __name__ == "__main__":
    sys.exit(main())
