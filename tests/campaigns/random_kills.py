"""Kill a random process of a run at a random moment, many times, and look at what is left.

    python -m tests.campaigns.random_kills --count 200 --seed 1

Each case is a small `colo run` on cores. When a stage has come (start-up, a trial, between two trials, sealing), and
after a random part of a second, one process of a random kind gets a random signal: SIGKILL, SIGTERM, SIGINT or SIGHUP.
Then the run ends by itself, and is resumed where it is unfinished. What must hold: no process of ours lives, no trial
that is recorded as measured is half there or is measured again, nothing of ours stays in /dev/shm or in the launchers'
folders below /tmp, nothing tells a traceback of ours, and the run is completed.

Most cases run on stand-ins of the engines (tests/standins/engines.py): everything but the models is real, so that a
case takes a quarter of a minute. `--real-every N` runs each N-th one on the true vLLM and embedding model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.data.run import open_run, read_frame
from colo_lib.errors import InputError
from colo_lib.frames import FRAMES
from colo_lib.launch.guardian import mapped
from colo_lib.paths import REPOSITORY
from tests.processes import MARK, token_carriers, wait_until
from tests.standins import engines

MODELS = Path(__file__).parents[1] / "models"
PARAMS = {
    "run_name": "nano", "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"),
    "window_s": 0.8, "warmup_s": 0.2, "max_stranger_cores": 64.0, "max_drift_fraction": 50.0,
    "max_clock_disagreement": 5.0, "embed_sequence_tokens": 64, "gen_prompt_tokens": 8, "gen_output_tokens": 16,
    "stall_timeout_s": 10.0, "ready_timeout_s": 120.0, "cell_timeout_s": 200.0,
}  # fmt: skip
# kind of process -> words of its command line
KINDS = {
    "launcher": "colo_lib.cli", "guardian": "guardian.py", "server": "", "core": "VLLM::EngineCore",
    "embed": "", "client": "colo_lib.launch.gen_client", "watcher": "colo_lib.telemetry.watchdog",
    "sampler": "colo_lib.telemetry.sampler", "alternator": "alternate.py", "host": "colo_lib.record.notebook_host",
    "kernel": "ipykernel_launcher", "tracker": "resource_tracker",
}  # fmt: skip
ENGINE_WORDS = {
    "server": ("vllm.entrypoints.openai.api_server", "engines.py gen"),
    "embed": ("embed_worker.py", "engines.py embed"),
}
STAGES = ("start-up", "trial", "between", "sealing")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HANGS_S, TRACES_S = 400.0, 20.0
SHARED = ("psm_", "nccl-", "torch_", "vllm_dist_", "sem.mp-")
RUNTIMES = Path("/tmp")


@dataclass(frozen=True)
class Case:
    """What strikes whom, and when."""

    number: int
    steps: str
    stage: str
    kind: str
    signal: signal.Signals
    after_s: float
    real: bool

    @property
    def words(self) -> str:
        """The case in a line."""
        engine = "vLLM" if self.real else "stand-ins"
        when = f"{self.stage} + {self.after_s:.2f} s"
        return f"{self.number}: {self.signal.name} to {self.kind}, {when}, {self.steps}, {engine}"


def draw(number: int, seed: int, real: bool) -> Case:
    """The case of a number: the same for the same seed."""
    chance = random.Random(f"{seed} {number}")
    stage = chance.choice(STAGES)
    # Between two trials there have to be two.
    one = [] if stage == "between" else ["step1", "step4", "step3"]
    steps = chance.choice([*one, "step1,step4", "step2,step3", "step1,step2"])
    kinds = ["launcher", "launcher", "guardian", "host", "kernel", "watcher", "sampler"]
    kinds += ["embed"] if steps != "step1" else []
    kinds += ["server", "core", "client", "tracker"] if steps != "step4" else []
    kinds += ["alternator"] if "step3" in steps else []
    kind = chance.choice(kinds)
    # Who lives in no other stage is met in the one in which it lives; a run that is being sealed has ended its engines.
    stage = "trial" if kind in ("kernel", "client", "watcher", "sampler", "alternator") else stage
    kind = "launcher" if stage == "sealing" else kind
    reach_s = {"start-up": 20.0 if real else 3.0, "trial": 1.5, "between": 1.0, "sealing": 0.4}[stage]
    return Case(number, steps, stage, kind, chance.choice(SIGNALS), chance.uniform(0, reach_s), real)


class Run:
    """A launcher of a case, its output and its processes."""

    def __init__(self, folder: Path, words: list[str], mark: str) -> None:
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", MARK: mark}
        self.log = folder / "output.txt"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "colo_lib.cli", "run", *words, "--no-report"],
                cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip

    def told(self) -> str:
        """What it and what came before it said."""
        return self.log.read_text(errors="replace")

    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def living(self, kind: str) -> list[int]:
        """Pids of a kind of process."""
        if kind == "launcher":
            return [] if self.over() else [self.process.pid]
        words = ENGINE_WORDS.get(kind, (KINDS[kind],))
        found = token_carriers().items()
        return [
            pid
            for pid, line in found
            if any(word in line for word in words) and ("guardian.py" in line) == (kind == "guardian")
        ]


def strike(run: Run, case: Case, folder: Path, chance: random.Random) -> str:
    """Wait for the stage, then for the moment, then for the victim; what was done, in words."""
    came = {
        "start-up": lambda: bool(token_carriers()),
        "trial": lambda: any(folder.glob("runs/*/steps/*/*.partial")),
        "between": lambda: "\n[" in run.told(),
        "sealing": lambda: f"[{len(case.steps.split(','))}/" in run.told(),
    }[case.stage]
    wait_until(lambda: run.over() or came(), HANGS_S)
    time.sleep(case.after_s)
    wait_until(lambda: run.over() or run.living(case.kind), HANGS_S)
    victims = run.living(case.kind)
    if not victims:
        return "the run was over"
    victim = chance.choice(victims)
    try:
        os.kill(victim, case.signal)
    except ProcessLookupError:
        return "it had just ended"
    return "struck"


def carry_out(case: Case, keep: Path | None = None) -> tuple[str, list[str]]:
    """(what happened, what is wrong, a line each)."""
    folder, mark = Path(tempfile.mkdtemp(prefix="kills-")), secrets.token_hex(8)
    before_mark, os.environ[MARK] = os.environ.get(MARK), mark
    segments, began_s = set(os.listdir("/dev/shm")), time.time()
    wrong: list[str] = []
    try:
        run = Run(folder, [str(params_file(folder, case))], mark)
        happened = strike(run, case, folder, random.Random(case.number))
        code = ended(run, wrong)
        happened += f", exit code {code}"
        if not wait_until(lambda: not token_carriers(), 60.0):
            wrong.append(f"orphans: {token_carriers()}")
        wrong += resumed(run, case, folder, mark, code)
        # Others beside us end engines too: what is theirs is gone in a moment.
        wait_until(lambda: not traces_left(segments, began_s), TRACES_S)
        wrong += traces_left(segments, began_s)
        if "Traceback (most recent call last)" in own_words(run.told()):
            wrong.append(f"a traceback: {run.told()[-1500:]}")
    finally:
        for pid in token_carriers():
            os.kill(pid, signal.SIGKILL)
        if before_mark is not None:
            os.environ[MARK] = before_mark
        if wrong and keep is not None:
            shutil.copytree(folder, keep / f"case-{case.number}", dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return happened, wrong


def params_file(folder: Path, case: Case) -> Path:
    """The run's parameters."""
    plain: dict[str, Any] = PARAMS | {"runs_dir": str(folder / "runs"), "steps": case.steps, "blocks": 1}
    plain |= {} if case.real else {"gen_python": str(engines.make(folder / "bin"))}
    file = folder / "nano.yaml"
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in plain.items()))
    return file


def ended(run: Run, wrong: list[str]) -> int | None:
    """The launcher's exit code; one that does not end is a fault."""
    try:
        return run.process.wait(HANGS_S)
    except subprocess.TimeoutExpired:
        run.process.kill()
        wrong.append(f"the launcher hung: {run.told()[-1500:]}")
        return run.process.wait()


def resumed(run: Run, case: Case, folder: Path, mark: str, code: int | None) -> list[str]:
    """Resume what is unfinished and look at every trial; what is wrong."""
    found = sorted((folder / "runs").glob("*")) if (folder / "runs").is_dir() else []
    if not found:
        return [] if code != 0 else ["exit code 0 without a run"]
    (target,) = found
    before, wrong = measured(target), []
    if target.name.endswith(".partial"):
        again = Run(folder, ["--resume", str(target)], mark)
        again_code = ended(again, wrong)
        if again_code != 0:
            return [*wrong, f"resuming ended with {again_code}: {again.told()[-1500:]}"]
        (target,) = sorted((folder / "runs").glob("*"))
    elif code not in (0, -case.signal, 130):
        wrong.append(f"a finished run, and exit code {code}")
    try:
        opened = open_run(target)
    except InputError as error:
        return [*wrong, f"the finished run is not read: {error}"]
    if set(opened.trials["step"]) != set(case.steps.split(",")) or len(opened.trials) != len(case.steps.split(",")):
        wrong.append(f"trials of {list(opened.trials['step'])}, asked for {case.steps}")
    after = measured(target)
    wrong += [f"{name} was measured again" for name, content in before.items() if after.get(name) != content]
    return wrong


def measured(run: Path) -> dict[str, bytes]:
    """Records of trials that need no repetition, by name; raises for one whose frames are not whole."""
    found = {}
    for file in sorted(run.glob("steps/*/trial-*/trial.json")):
        record = json.loads(file.read_text())
        if file.parent.name.endswith(".partial") or record["status"] not in ("done", "invalid"):
            continue
        for frame in file.parent.glob("*.parquet"):
            assert frame.stem in FRAMES, frame
            read_frame(frame, frame.stem)
        for rate, frames in (("gen_tokens_per_s", ("gen", "requests")), ("embed_sequences_per_s", ("embed",))):
            assert record[rate] is None or all((file.parent / f"{name}.parquet").is_file() for name in frames), file
        found[file.parent.name + file.parent.parent.name] = file.read_bytes()
    return found


def traces_left(segments: set[str], began_s: float) -> list[str]:
    """Shared memory that nobody maps, and launchers' folders whose owner is gone."""
    listed = set(os.listdir("/dev/shm")) - segments
    living = mapped(int(name) for name in os.listdir("/proc") if name.isdigit())
    # Engines of another checkout that start now list a semaphore for a moment, then remove its name.
    left = [name for name in listed if f"/dev/shm/{name}".encode() not in living and Path("/dev/shm", name).exists()]
    wrong = [f"in /dev/shm: {name}" for name in left if name.startswith(SHARED)]
    for folder in set(RUNTIMES.glob("colo-*")) - set(RUNTIMES.glob("colo-example-*")):
        try:
            owner = json.loads((folder / "owner.json").read_text())["pid"]
            gone = folder.stat().st_ctime > began_s and not Path(f"/proc/{owner}").exists()
        except (OSError, ValueError):
            gone = folder.exists() and began_s < folder.stat().st_ctime < time.time() - 5
        if gone:
            wrong.append(f"in /tmp: {folder.name}")
    return wrong


def own_words(told: str) -> str:
    """The output without what it quotes of an engine's log, which may hold the engine's own traceback."""
    return "\n".join(line for line in told.split("its last lines:")[0].splitlines())


def main() -> int:
    """Carry out the cases and tell each that is wrong; 0 when none is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=1, help="number of the first case (default: 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real-every", type=int, default=20, metavar="N", help="0: never (default: 20)")
    parser.add_argument("--keep", type=Path, help="folder that receives the folders of cases that are wrong")
    options = parser.parse_args()
    tally: Counter[str] = Counter()
    for number in range(options.first, options.first + options.count):
        real = bool(options.real_every) and number % options.real_every == 0
        case, began_s = draw(number, options.seed, real), time.monotonic()
        happened, wrong = carry_out(case, options.keep)
        tally[happened.split(",")[0]] += 1
        tally["vLLM" if real else "stand-ins"] += 1
        tally["wrong"] += bool(wrong)
        print(f"{case.words}: {happened} ({time.monotonic() - began_s:.0f} s)", flush=True)
        for line in wrong:
            print(f"   WRONG: {line}", flush=True)
    print(", ".join(f"{name}: {count}" for name, count in sorted(tally.items())))
    return 1 if tally["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
