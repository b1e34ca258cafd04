"""`cpu-alternating`: two process groups take strict turns, by SIGSTOP and SIGCONT.

Standard library only, run as a file under a guardian:

    python alternate.py --slice-ms 50 --gen PGID --embed PGID[,PGID] --out FILE

A group runs only after every process of the other one is seen stopped. SIGTERM ends it: both groups are
continued and FILE receives a line a turn: workload, start_ns, end_ns (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import argparse
import os
import signal
import time

STOP_DEADLINE_S = 10.0
INSIST_S = 0.2
LOOK_AGAIN_S = 1.0
HELD = "TtZX"


def stat(pid: int) -> tuple[str, int]:
    """(state, process group) of a pid; state X when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[2])
    except OSError:
        return "X", -1


class WorkloadGroups:
    """The process groups of one workload; their members are looked up anew every second."""

    def __init__(self, name: str, groups: list[int]) -> None:
        self.name, self.groups = name, groups
        self.looked_s = 0.0
        self.known: list[int] = []

    def members(self) -> list[int]:
        """Pids in the groups."""
        if time.monotonic() - self.looked_s > LOOK_AGAIN_S:
            self.known = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and stat(int(pid))[1] in self.groups]
            self.looked_s = time.monotonic()
        return self.known

    def send(self, number: int) -> None:
        """One signal to every group; raises ProcessLookupError when one is gone."""
        for group in self.groups:
            os.killpg(group, number)

    def hold(self) -> None:
        """Stop the groups and wait until each process is seen stopped; raises TimeoutError naming one that is not."""
        self.send(signal.SIGSTOP)
        began = insisted = time.monotonic()
        while running := [(pid, stat(pid)[0]) for pid in self.members() if stat(pid)[0] not in HELD]:
            now = time.monotonic()
            if now - began > STOP_DEADLINE_S:
                raise TimeoutError(f"{self.name} did not stop within {STOP_DEADLINE_S:g} s: (pid, state) {running}")
            if now - insisted > INSIST_S:
                self.send(signal.SIGSTOP)
                insisted = now
            time.sleep(0.0005)


def alternate(
    gen: WorkloadGroups, embed: WorkloadGroups, slice_s: float, going: list[bool]
) -> list[tuple[str, int, int]]:
    """Turns of `slice_s` until `going[0]` is false; returns (workload, start_ns, end_ns) a turn.

    A turn is told from before it was allowed until after it was seen to have ended: the workload ran at no
    other time.
    """
    turns: list[tuple[str, int, int]] = []
    gen.hold()
    embed.hold()
    mine, other = gen, embed
    while going[0]:
        start = time.monotonic_ns()
        mine.send(signal.SIGCONT)
        time.sleep(slice_s)
        mine.hold()
        turns.append((mine.name, start, time.monotonic_ns()))
        mine, other = other, mine
    return turns


def main() -> None:
    """Alternate until SIGTERM; whatever happens, both groups run again at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slice-ms", type=float, required=True)
    for name in ("--gen", "--embed"):
        parser.add_argument(name, required=True, type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.__setitem__(0, False))
    open(options.out, "w").close()  # the owner waits for it: from now on being told to end is heard
    turns: list[tuple[str, int, int]] = []
    try:
        workloads = WorkloadGroups("gen", options.gen), WorkloadGroups("embed", options.embed)
        turns = alternate(*workloads, options.slice_ms / 1e3, going)
    finally:
        for group in options.gen + options.embed:
            try:
                os.killpg(group, signal.SIGCONT)
            except ProcessLookupError:
                continue
        with open(options.out, "w") as file:
            file.writelines(f"{name} {start} {end}\n" for name, start, end in turns)


if __name__ == "__main__":
    main()
