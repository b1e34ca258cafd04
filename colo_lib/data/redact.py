"""Make an Nsight Systems export fit to share: what is known to be harmless, copied into a file made afresh.

Numbers of the columns named here are copied. Of texts only those of `TEXTS` are, each by its own rule. A table, a
column or a text that is not listed stays behind, be it of a newer export or of somebody's own. Of the old file's schema
(defaults, checks, views, triggers, indexes) and of its free pages nothing comes along.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo_lib.data import nsys_schema as schema
from colo_lib.data.scrub import HIDDEN, MACHINE, VALUES, Scrubber
from colo_lib.data.sqlite_file import check_file
from colo_lib.data.sqlite_reader import opened, tables_of
from colo_lib.errors import InputError

KEPT = re.compile(
    r"CUPTI_ACTIVITY_KIND_(KERNEL|GRAPH_TRACE|MEMCPY|MEMSET|RUNTIME)(_V\d{1,3})?|GPU_CONTEXT_SWITCH_EVENTS|PROFILER_OVERHEAD"
    r"|CUDA_GRAPH_EVENTS|TARGET_INFO_(GPU|CUDA_GPU|CUDA_DEVICE|CUDA_CONTEXT_INFO|CUDA_STREAM|SESSION_START_TIME)"
    r"|ANALYSIS_DETAILS|PROCESSES|StringIds|META_DATA_EXPORT|ENUM_GPU_CTX_SWITCH"
)
NUMBERS = re.findall(
    r"\w+",
    """
    start end deviceId contextId greenContextId streamId correlationId globalPid globalTid demangledName shortName
    mangledName nameId launchType cacheConfig registersPerThread gridX gridY gridZ blockX blockY blockZ
    staticSharedMemory dynamicSharedMemory localMemoryPerThread localMemoryTotal gridId sharedMemoryExecuted
    graphNodeId sharedMemoryLimitConfig graphId graphExecId originalGraphId eventClass bytes copyKind
    deprecatedSrcId srcKind dstKind srcDeviceId srcContextId dstDeviceId dstContextId migrationCause memKind
    returnValue value vmId tag seqNo timestamp gpuId cudaId pid id processId hwId nullStreamId parentContextId
    isGreenContext flag priority globalVid duration startTime stopTime utcEpochNs numMultiprocessors isDiscrete
    l2CacheSize totalMemory memoryBandwidth clockRate smCount pwGpuId cuDevice revision nodeMask constantMemory
    maxIPC maxRegistersPerBlock maxShmemPerBlock maxShmemPerBlockOptin maxShmemPerSm maxRegistersPerSm
    threadsPerWarp asyncEngines maxWarpsPerSm maxBlocksPerSm maxThreadsPerBlock maxBlockDimX maxBlockDimY
    maxBlockDimZ maxGridDimX maxGridDimY maxGridDimZ computeMajor computeMinor smMajor smMinor
    """,
)
META = {
    *(f"EXPORT_PRODUCT_{name}" for name in ("NAME", "VERSION", "DATE")),
    *(f"EXPORT_SCHEMA_VERSION{name}" for name in ("", "_MAJOR", "_MINOR", "_MICRO", "_CKSUM")),
    *(
        "EXPORT_PLATFORM",
        "EXPORT_ARCH",
        "EXPORT_PARAM_TIME_NORMALIZE",
        "EXPORT_PARAM_TIME_SHIFT",
        "EXPORT_CONFIG_TIME_SHIFT",
    ),
}
META_VALUE = re.compile(
    r"[-\d. ]{0,40}|true|false|SIMULATED|NVIDIA Nsight Systems"
    r"|(?:linux|windows)(?:-(?:desktop|server|embedded|arm|x64)){0,2}|x64|x86_64|arm64|aarch64|sbsa"
)
SWITCH_NAMES = re.findall(
    r"\w+",
    """
    UnknownGpuCtxswTag SOF REQ_BY_HOST FE_ACK FE_ACK_WFI FE_ACK_GFXP FE_ACK_CTAP FE_ACK_CILP SAVE_END RESTORE_START
    CONTEXT_START INVALID_TIMESTAMP ENGINE_RESET OTHER
    """,
)
BUS = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
Rule = Callable[[Scrubber, str], str]


def _bus(scrub: Scrubber, value: str) -> str:
    return value if BUS.fullmatch(value) or not value else scrub.hide(MACHINE)


def _chip(scrub: Scrubber, value: str) -> str:
    return value if re.fullmatch(r"[A-Z]{0,2}\d{2,3}[A-Z]?", value) or not value else scrub.hide(MACHINE)


def _device(scrub: Scrubber, value: str) -> str:
    return scrub.device(value) if value else ""


def _meta(scrub: Scrubber, value: str) -> str:
    return value if META_VALUE.fullmatch(value) else scrub.hide(VALUES)


def _switch(scrub: Scrubber, value: str) -> str:
    # What is neither a coming nor a leaving is passed over, whatever it is called.
    return value if value in SWITCH_NAMES else scrub.hide(VALUES, "OTHER")


# (table, column in lower case) -> how its text is shared
TEXTS: dict[tuple[str, str], Rule] = {
    ("StringIds", "value"): Scrubber.name,
    ("PROCESSES", "name"): Scrubber.process,
    ("META_DATA_EXPORT", "name"): lambda _, value: value,  # rows of other names stay behind
    ("META_DATA_EXPORT", "value"): _meta,
    ("ENUM_GPU_CTX_SWITCH", "name"): _switch,
    **{
        (table, column): rule
        for table in ("TARGET_INFO_GPU", "TARGET_INFO_CUDA_GPU", "TARGET_INFO_CUDA_DEVICE")
        for column, rule in (
            ("name", Scrubber.hardware), ("chipname", _chip), ("buslocation", _bus), ("uuid", _device),
        )
    },
}  # fmt: skip
SPELLED = {name.lower(): name for name in (*NUMBERS, "name", "chipName", "busLocation", "uuid")}


def kept_columns(table: str, columns: tuple[str, ...]) -> dict[str, str]:
    """The columns of a table that may be shared, as it spells them -> as they are spelled in the copy."""
    texts = {column for name, column in TEXTS if name == table}
    numbers = set(SPELLED) - {"name", "chipname", "buslocation", "uuid"} - texts
    return {column: SPELLED[column.lower()] for column in columns if column.lower() in texts | numbers}


def shared_value(scrub: Scrubber, table: str, column: str, value: Any) -> Any:
    """A value as it may be shared; `column` in lower case. Text and bytes where a number belongs are left out."""
    rule = TEXTS.get((table, column))
    if rule is not None:
        if value == HIDDEN:
            return value
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        return rule(scrub, value) if isinstance(value, str) else value
    if value is None or isinstance(value, int | float):
        return value
    scrub.hide(VALUES)
    return None


PIDS = {"globalpid", "globaltid"}
TIMED = ("start", "timestamp")
ROWS = 20_000


@dataclass
class Redaction:
    """What was removed: `lines` in words, for the user to judge."""

    lines: list[str] = field(default_factory=list)


def redact(
    source: Path,
    target: Path,
    pids: set[int],
    window_s: tuple[float, float] | None = None,
    scrub: Scrubber | None = None,
) -> Redaction:
    """Write a shareable copy of export `source` to `target`, which must not exist; gives what was left out.

    `pids`: processes whose rows are kept, by the pids of kernels and of context switches. `window_s`: keep this part
    alone. `scrub`: what else is shared together with it, so that a GPU keeps its number. Raises InputError for an input
    that cannot be read or an output that exists or cannot be written.
    """
    check_file(source)
    if target.exists():
        raise InputError(f"{target} exists; give the name of a new file")
    made = target.with_name(f".{target.name}.new")
    try:
        made.unlink(missing_ok=True)
        with opened(source) as old:
            new = sqlite3.connect(made)
            try:
                redaction = _Copier(old, new, pids, window_s, scrub or Scrubber()).copy()
                new.commit()
                new.execute("VACUUM")
            finally:
                new.close()
        made.rename(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from None
    finally:
        made.unlink(missing_ok=True)
    return redaction


@dataclass
class _Copier:
    old: sqlite3.Connection
    new: sqlite3.Connection
    pids: set[int]
    window_s: tuple[float, float] | None
    scrub: Scrubber
    strings: set[int] = field(default_factory=set)
    launched: set[tuple[int, int]] = field(default_factory=set)  # (pid, correlation) of the activity that is kept

    def copy(self) -> Redaction:
        tables, redaction, before = tables_of(self.old), Redaction(), self.scrub.counts.copy()
        words = 0
        self.scrub.secrets |= _secrets(self.old, tables)
        # Activity first: its launches are kept with it, and of the names only those that anything kept refers to.
        for table in sorted(tables, key=lambda name: (name == "StringIds", "RUNTIME" in name)):
            count = int(self.old.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0])
            columns = kept_columns(table, tables[table]) if KEPT.fullmatch(table) else {}
            if not columns:
                if table.startswith("ENUM_"):
                    words += 1
                else:
                    redaction.lines.append(f"table {table}: {count:,} rows")
                continue
            kept = self._table(table, columns)
            if kept < count:
                redaction.lines.append(f"{table}: {count - kept:,} of {count:,} rows (other processes, times or names)")
            left = [column for column in tables[table] if column not in columns]
            if left and kept:
                redaction.lines.append(f"{table}: values of {', '.join(left)}")
        if words:
            redaction.lines.append(f"lists of words that nothing here reads: {words} tables ENUM_*")
        redaction.lines += [f"{kind}: {count:,}" for kind, count in (self.scrub.counts - before).items()]
        return redaction

    def _table(self, table: str, columns: dict[str, str]) -> int:
        kinds = {name: "TEXT" if (table, name.lower()) in TEXTS else "INTEGER" for name in columns.values()}
        key = {"id": " PRIMARY KEY"} if table == "StringIds" else {}
        declared = ", ".join(f"{_quoted(name)} {kind}{key.get(name, '')}" for name, kind in kinds.items())
        self.new.execute(f"CREATE TABLE {_quoted(table)} ({declared})")
        low = [column.lower() for column in columns]
        places = ", ".join("?" * len(columns))
        cursor = self.old.execute(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table)}")
        kept = 0
        while rows := cursor.fetchmany(ROWS):
            shared_rows = [self._row(table, low, row) for row in rows if self._keeps(table, low, row)]
            self.new.executemany(f"INSERT OR REPLACE INTO {_quoted(table)} VALUES ({places})", shared_rows)
            kept += len(shared_rows)
        return kept

    def _keeps(self, table: str, columns: list[str], row: tuple[Any, ...]) -> bool:
        values = dict(zip(columns, row, strict=True))
        if table == "StringIds":
            return values.get("id") in self.strings
        if table == "META_DATA_EXPORT":
            return values.get("name") in META
        for name in PIDS & set(columns):
            serial = values[name]
            if isinstance(serial, int) and (serial >> 24) & 0xFFFFFF not in self.pids:
                return False
        if "processid" in values and values["processid"] not in self.pids:
            return False
        return self._in_window(table, values)

    def _in_window(self, table: str, values: dict[str, Any]) -> bool:
        if table.startswith("CUPTI_ACTIVITY") and "RUNTIME" in table and self._launch(values) in self.launched:
            return True
        time = next((values[name] for name in TIMED if name in values), None)
        if self.window_s is None or not isinstance(time, int) or table == "CUDA_GRAPH_EVENTS":
            return True
        end = values.get("end", time)
        start_ns, end_ns = (round(second * 1e9) for second in self.window_s)
        return time < end_ns and (end if isinstance(end, int) else time) > start_ns

    def _launch(self, values: dict[str, Any]) -> tuple[int, int]:
        serial = values.get("globalpid", values.get("globaltid"))
        pid = (serial >> 24) & 0xFFFFFF if isinstance(serial, int) else 0
        return pid, values.get("correlationid") or 0

    def _row(self, table: str, columns: list[str], row: tuple[Any, ...]) -> tuple[Any, ...]:
        if table.startswith("CUPTI_ACTIVITY") and "RUNTIME" not in table:
            self.launched.add(self._launch(dict(zip(columns, row, strict=True))))
        return tuple(self._value(table, name, value) for name, value in zip(columns, row, strict=True))

    def _value(self, table: str, column: str, value: Any) -> Any:
        if isinstance(value, int) and (column.endswith("name") or column == "nameid"):
            self.strings.add(value)
        return shared_value(self.scrub, table, column, value)


def _secrets(connection: sqlite3.Connection, tables: schema.Tables) -> set[str]:
    """Host and user names that the export itself tells, to be taken out wherever else they stand."""
    secrets = set()
    for table in ("TARGET_INFO_SYSTEM_ENV", "META_DATA_CAPTURE"):
        for row in schema.rows_of(connection, tables, table):
            words = " ".join(str(row.get(key, "")) for key in ("name", "nameEnum", "devStateName")).lower()
            value = row.get("value")
            if isinstance(value, str) and len(value) > 2 and re.search(r"host|user|login|home", words):
                secrets.add(value)
    return secrets


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
