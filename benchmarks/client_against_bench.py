"""Does our load client see what vLLM's own benchmark sees? Both in turn on the same server, as a ratio.

    python benchmarks/client_against_bench.py params/cpu.yaml
    python benchmarks/client_against_bench.py params/cpu-serve.yaml --set gen_concurrency=64 --set window_s=40
    python benchmarks/client_against_bench.py params/h100.yaml --set window_s=20 --rounds 5

The server is the launcher's, but with a tokenizer, which `vllm bench serve` asks for: one made up of as many words as
the model has tokens. Each round measures a window with our client, then as many requests with the benchmark's random
prompts of the same lengths at the same concurrency, `--ignore-eos`. The benchmark counts from its first request to its
last answer, the beginning and the end included; our window does not. A virtual machine whose host takes its cores
away under load (`st` of `top`) favours the benchmark, which rests while it starts: look at that before the ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from colo_lib.cli.run import changes  # noqa: E402
from colo_lib.hardware.engine_python import resolve_models  # noqa: E402
from colo_lib.launch.engines import Engines, Handles  # noqa: E402
from colo_lib.launch.rpc import runtime_folder  # noqa: E402
from colo_lib.launch.specs import specs_of  # noqa: E402
from colo_lib.launch.trial import run_trial  # noqa: E402
from colo_lib.launch.vllm_server import SERVED_NAME  # noqa: E402
from colo_lib.params import Params, load  # noqa: E402
from colo_lib.placement import placement_of  # noqa: E402
from colo_lib.record.plan import Progress  # noqa: E402
from colo_lib.records import Trial  # noqa: E402

TOKENIZER = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
words = {f"w{number}": number for number in range(int(sys.argv[1]))}
made = Tokenizer(models.WordLevel(words, unk_token="w0"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"unk_token": "w0", "pad_token": "w0", "eos_token": "w1", "bos_token": "w2"}
PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(sys.argv[2])
"""
# `vllm bench serve` itself, past the command line's front, which asks for a package `vllm` that a CPU build is not.
BENCH = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""
BENCH_TIMEOUT_S = 1200.0


def bench(params: Params, python: Path, handles: Handles, tokenizer: Path, requests: int, folder: Path) -> float:
    """Output tokens/s by `vllm bench serve`; raises RuntimeError with its last words where it fails."""
    assert handles.gen is not None
    words = [str(python), "-c", BENCH, "--backend", "openai"]
    words += ["--base-url", f"http://127.0.0.1:{handles.gen.port}", "--endpoint", "/v1/completions"]
    words += ["--model", SERVED_NAME, "--tokenizer", str(tokenizer), "--dataset-name", "random", "--ignore-eos"]
    words += ["--random-input-len", str(params.gen_prompt_tokens), "--random-output-len", str(params.gen_output_tokens)]
    words += ["--num-prompts", str(requests), "--max-concurrency", str(params.gen_concurrency), "--disable-tqdm"]
    words += ["--temperature", "0"]  # as our client asks; its default samples
    words += ["--save-result", "--result-dir", str(folder), "--result-filename", "bench.json"]
    env = os.environ | {"OPENAI_API_KEY": handles.gen.key, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=BENCH_TIMEOUT_S, check=False)
    result = folder / "bench.json"
    if done.returncode or not result.is_file():
        raise RuntimeError(f"vllm bench serve ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    told: dict[str, Any] = json.loads(result.read_text())
    if told["completed"] != requests:
        raise RuntimeError(f"vllm bench serve completed {told['completed']} of {requests} requests")
    return float(told["output_throughput"])


def said(trial: Trial) -> str:
    """How far vLLM's count of the window's tokens was off ours, and what the trial's record says against it."""
    off = "unknown" if trial.clock_disagreement is None else f"{trial.clock_disagreement:.2%} apart"
    return "; ".join(filter(None, [off, trial.reason, *(trial.marks or [])]))


def rounds(params: Params, count: int) -> list[tuple[float, float]]:
    """(our tokens/s, the benchmark's) of each round."""
    found, placement, models = [], placement_of("step1", params), resolve_models(params)
    with runtime_folder() as runtime, tempfile.TemporaryDirectory() as made:
        folder, tokenizer = Path(made), Path(made) / "tokenizer"
        subprocess.run(
            [str(models.gen.python), "-c", TOKENIZER, str(models.gen_vocab_size), str(tokenizer)], check=True
        )
        own = params.model_copy(update={"gen_extra_args": f"--no-skip-tokenizer-init --tokenizer {tokenizer}"})
        specs = specs_of(own, placement)
        # The benchmark's requests have one length and begin together: so do ours here.
        unstaggered = replace(specs.trial, load=replace(specs.trial.load, stagger=False))
        engines = Engines(specs.engines, runtime, folder / "logs")
        try:
            handles = engines.start(True, False, Progress())
            for number in range(1, count + 1):
                trial = run_trial(unstaggered, handles, folder / f"trial-{number}", number)
                ours = float(trial.gen_tokens_per_s or math.nan)
                requests = max(1, math.ceil(ours * params.window_s / params.gen_output_tokens))
                # Whole turns of all slots: a last turn of fewer requests would not be the same load.
                requests = math.ceil(requests / params.gen_concurrency) * params.gen_concurrency
                theirs = bench(own, models.gen.python, handles, tokenizer, requests, folder)
                print(
                    f"round {number}: ours {ours:,.1f}, vllm bench serve {theirs:,.1f} tokens/s, {ours / theirs:.3f}; "
                    f"vLLM's own counter beside ours: {said(trial)}",
                    flush=True,
                )
                found.append((ours, theirs))
        finally:
            engines.stop()
    return found


def main() -> None:
    """Print each round and the median ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("params", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    params = load(options.params, **changes(options.set))
    ratios = [ours / theirs for ours, theirs in rounds(params, options.rounds)]
    where = " (cores stand in for a GPU)" if params.device == "cpu" else ""
    print(f"median of {len(ratios)} rounds: ours / vllm bench serve = {statistics.median(ratios):.3f}{where}")


if __name__ == "__main__":
    main()
