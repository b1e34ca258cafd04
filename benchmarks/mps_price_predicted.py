"""What being an MPS client was predicted to cost from the launches of one capture, beside what it did.

    python benchmarks/mps_price_predicted.py recorded/h200-big-*[0-9] …                 the table of docs/hardware.md
    python benchmarks/mps_price_predicted.py … --figure figures/mps-price-predicted     its figure, .png and .svg

Runs, or cells of a sweep (its `runs/` folder's own). The reckoning is the product's own
(`colo_lib.analysis.trace.mps_price`); notebook 52 shows it for one run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.trace.mps_price import Price, price_sentence
from colo_lib.data.run import open_run
from colo_lib.plot.mps_price import predicted_and_measured


def main() -> None:
    """Print a row a run and the sentence of each; draw them where a figure is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path, help="file without its ending")
    options = parser.parse_args()
    print("| run | predicted | least to most | by kernels | by trials | predicted / trials |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    prices: dict[str, Price] = {}
    for folder in options.runs:
        run = open_run(folder)
        price = RunAnalysis(run).mps_price
        if price is None:
            print(f"| {folder.name} | — | — | — | — | — |")
            continue
        device = str(run.manifest.machine.device_name).removeprefix("NVIDIA ").split(" ")[0]
        prices[f"{run.params.gen_model}, {run.params.gen_concurrency} in flight, {device}"] = price
        numbers = [f"{price.least_us:.0f} to {price.most_us:.0f}", f"{price.kernels_us:.0f}", f"{price.trials_us:.0f}"]
        ratio = f"{price.predicted_us / price.trials_us:.2f}"
        print(f"| {folder.name} | {price.predicted_us:.0f} | {' | '.join(numbers)} | {ratio} |".replace("nan", "—"))
    for title, price in prices.items():
        print(f"\n{title}: {price_sentence(price)}")
    if options.figure:
        figure = predicted_and_measured(prices)
        figure.savefig(f"{options.figure}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(f"{options.figure}.png", dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
