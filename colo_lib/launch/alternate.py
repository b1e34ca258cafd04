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

STOP_DEADLINE_S = 2.0
STOPPED = b"Tt"


def members(groups: list[int]) -> list[int]:
    """Living pids whose process group is one of `groups`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and _stat(int(name))[1] in groups:
            found.append(int(name))
    return found


def _stat(pid: int) -> tuple[bytes, int]:
    """(state, process group) of a pid; state X when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        return fields[0], int(fields[2])
    except OSError:
        return b"X", -1


def signal_groups(groups: list[int], number: int) -> None:
    """One signal to every group; raises ProcessLookupError when one is gone."""
    for group in groups:
        os.killpg(group, number)


def hold(groups: list[int]) -> None:
    """Stop the groups and wait until each of their processes is seen stopped."""
    signal_groups(groups, signal.SIGSTOP)
    deadline = time.monotonic() + STOP_DEADLINE_S
    while any(_stat(pid)[0] not in b"TtZX" for pid in members(groups)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process groups {groups} did not stop within {STOP_DEADLINE_S} s")
        time.sleep(0.0005)


def alternate(gen: list[int], embed: list[int], slice_s: float, going: list[bool]) -> list[tuple[str, int, int]]:
    """Turns of `slice_s` until `going[0]` is false; returns (workload, start_ns, end_ns) a turn."""
    turns: list[tuple[str, int, int]] = []
    hold(embed)
    names, groups, turn = ("gen", "embed"), (gen, embed), 0
    while going[0]:
        start = time.monotonic_ns()
        time.sleep(slice_s)
        end = time.monotonic_ns()
        hold(groups[turn])
        turns.append((names[turn], start, end))
        turn = 1 - turn
        signal_groups(groups[turn], signal.SIGCONT)
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
    turns: list[tuple[str, int, int]] = []
    try:
        turns = alternate(options.gen, options.embed, options.slice_ms / 1e3, going)
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
