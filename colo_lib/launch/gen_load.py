"""How gen's load stood in a window: whether every request that was in flight ran, and whether the client kept up.

vLLM's own counters say whether requests were preempted (the KV cache was full) or waited in its queue; then fewer ran
than the trial says, and it does not count. What makes a trial no less right, but worth knowing, is a mark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from colo_lib.launch.client_cpu import BUSY_CORES
from colo_lib.launch.specs import LoadSpec
from colo_lib.launch.vllm_server import ServerCounters
from colo_lib.records import GenLoad

# A new request waits for the engine step under way, which is one of its `output_tokens` or so, and for its turn to be
# read; more than that, and a twentieth of all, is no part of a closed loop that fits.
STEPS_WAITED, WAITING_SHARE = 2, 0.05
LATE_SENDING_MS = 50.0


@dataclass
class Findings:
    """What the record of a trial keeps of gen's load, what speaks against the trial, and what is worth knowing."""

    facts: GenLoad
    reasons: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)


def look_at_load(
    load: LoadSpec, before: ServerCounters | None, after: ServerCounters | None, client: ClientUse
) -> Findings:
    """How the load stood between two readings of vLLM's counters."""
    found = Findings(GenLoad(processes=client.processes, client_busiest_cores=client.busiest_cores))
    if client.busiest_cores is not None and client.busiest_cores > BUSY_CORES:
        found.marks.append(
            f"a process of the load client used {client.busiest_cores:.2f} of its core: tokens may be timed late; "
            f"raise gen_client_processes above {client.processes}"
        )
    if client.lag_ms > LATE_SENDING_MS:
        found.marks.append(f"the load client sent a request {client.lag_ms:.0f} ms after it was due")
    if before is None or after is None:
        return found
    preempted, waiting = round(after.preemptions - before.preemptions), waiting_on_average(before, after)
    found.facts = found.facts.joined(
        preemptions=preempted, waiting=waiting, kv_tokens=round(after.kv_tokens) if after.kv_tokens else None
    )
    if preempted > 0:
        found.reasons.append(
            f"vLLM preempted requests {preempted} times, its KV cache was full: raise gen_kv_cache_gib, or lower "
            "gen_concurrency or the lengths of requests"
        )
    if load.gen_demand is not None:
        return found
    if waiting > most_waiting(load):
        found.reasons.append(
            f"{waiting:.1f} of {load.concurrency} requests in flight waited in vLLM's queue on average, so that fewer "
            "ran: lower gen_concurrency, or shorten prompts"
        )
    wanted = kv_tokens_wanted(load, after.kv_block)
    if after.kv_tokens and wanted > after.kv_tokens:
        found.marks.append(
            f"vLLM's KV cache holds {after.kv_tokens:.0f} tokens, {load.concurrency} whole requests take {wanted:.0f}: "
            "they fit only while not all of them are at their end"
        )
    return found


@dataclass(frozen=True)
class ClientUse:
    """The load client in a window: processes, the most of a core that one used, how late it sent what was due."""

    processes: int
    busiest_cores: float | None = None
    lag_ms: float = 0.0


def waiting_on_average(before: ServerCounters, after: ServerCounters) -> float:
    """Requests in vLLM's queue on average.

    By Little's law the time that those which ended had spent in it over the time that passed; or, where few end, what
    both readings have at the least.
    """
    passed_s = (after.t_ns - before.t_ns) / 1e9
    ended = (after.queue_s - before.queue_s) / passed_s if passed_s > 0 else 0.0
    return max(ended, min(before.waiting, after.waiting), 0.0)


def most_waiting(load: LoadSpec) -> float:
    """How many of a closed loop's requests may wait on average, in a trial that counts."""
    return max(1.0, load.concurrency * (WAITING_SHARE + STEPS_WAITED / load.output_tokens))


def kv_tokens_wanted(load: LoadSpec, block: float) -> float:
    """Tokens of KV cache that all requests in flight take at their end, in whole blocks of `block` tokens."""
    request = load.prompt_tokens + load.output_tokens
    return load.concurrency * (math.ceil(request / block) * block if block else request)
