"""Take what names a machine, its users or their secrets out of text: by what is known to be harmless where that can be.

Free text (a reason, a log's line) is shared word by word: a word stays that the workbook itself says somewhere, every
other one goes. Names of kernels are anybody's, so of them goes only what looks like a path, host, address or token.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

HIDDEN = "(removed)"
HIDDEN_VALUE = re.compile(r"\(removed(?: \d+)?\)")
MOST_CHARS = 2_000
PACKAGE = Path(__file__).resolve().parents[1]

# What the counts of a share are about.
PATHS, HOSTS, USERS, TOKENS, DEVICES = (
    "paths",
    "hosts and addresses",
    "user names",
    "tokens and keys",
    "GPU identifiers",
)
WORDS, LINES, VALUES, FIELDS = (
    "words of free text",
    "lines of logs",
    "values not known to be harmless",
    "fields not listed",
)
MACHINE, FILES = "names of the machine", "files"
KINDS = (PATHS, HOSTS, USERS, TOKENS, DEVICES, WORDS, LINES, VALUES, FIELDS, MACHINE, FILES)

DEVICE = re.compile(
    r"(?<![A-Za-z0-9])(?:GPU|MIG)-(?=[\w/-]*\d)[0-9A-Za-z][\w/-]*"
    r"|\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b",
    re.IGNORECASE,
)
DEVICE_ALIAS = re.compile(r"\d{1,4}|(?:GPU|MIG) \d{1,4}")
URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>)]+")
AT = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*")
SECRET = re.compile(
    r"(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|credential)[\w-]*(?:=|:\s+)(?!\(removed)\S+"
    r"|--?[\w-]*(?:token|secret|password|key)[= ](?!\(removed)\S+"
    r"|(?<![A-Za-z0-9])(?:password|secret|bearer|basic)\s+(?=\S*[\d._-])(?!\(removed)\S{6,}",
    re.IGNORECASE,
)
PREFIXED = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{6,}|sk-[\w-]{6,}|gh[pousr]_[A-Za-z0-9]{6,}|github_pat_\w+|glpat-[\w-]+|xox[a-z]-[\w-]+"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|ya29\.[\w-]+|nvapi-[\w-]+|pypi-[\w-]+|dckr_pat_[\w-]+"
    r"|eyJ[\w-]{8,}(?:\.[\w-]+)*|ssh-(?:rsa|ed25519)\s+\S+)"
)
LONG = re.compile(r"\w{20,}")
IPV4 = re.compile(r"(?<![\d.])(?!(?:127\.0\.0\.1|0\.0\.0\.0)(?![\d.]))\d{1,3}(?:\.\d{1,3}){3}(?![\d.])(?::\d+)?")
IPV6 = re.compile(
    r"(?<![\w:])(?:(?:[0-9a-f]{1,4}:){4,7}[0-9a-f]{1,4}|(?:fe80|f[cd][0-9a-f]{2}|2[0-9a-f]{3}):[0-9a-f:]*:[0-9a-f]{1,4})"
    r"(?![\w:])",
    re.IGNORECASE,
)
HOST = re.compile(
    r"(?<![\w.])[A-Za-z0-9][\w-]*(?:\.[\w-]+)*\.(?:com|net|org|io|ai|edu|gov|mil|cloud|local|lan|internal|intranet|corp|home"
    r"|example|invalid|localdomain)(?![\w(<])",
    re.IGNORECASE,
)
# A part of a path. Parts between two slashes may hold blanks, the last one may not: a sentence goes on after it.
PART = r"[^\s/\\<>\"'|:;,()\[\]{}=`]+"
TAIL = rf"(?:[/\\]+{PART}(?: {PART}){{0,4}}(?=[/\\]))*[/\\]+(?:{PART})?"
PATH = re.compile(
    rf"(?P<quote>[\"'])(?:~[\w.-]*|[A-Za-z]:|\$\w+|\.{{1,2}})?[/\\][^\"']+(?P=quote)"  # all between two quotes
    rf"|(?<![A-Za-z0-9])(?:[A-Za-z]:|~[\w.-]*|\$\w+|\$\{{\w+\}}){TAIL}"  # C:\x, ~/x, ~name/x, $HOME/x
    rf"|\\{{2}}{PART}{TAIL}"  # \\host\x
    rf"|(?<![A-Za-z0-9)\]])(?=/+{PART}){TAIL}"  # /x
    rf"|[\w.+~$-]*(?:[/\\]+{PART}){{2,}}[/\\]*"  # x/y/z
    r"|(?:%2F[\w.+-]+)+",
    re.IGNORECASE,
)
PATH_LIKE = re.compile(r"^[\"'(\[<]*[/\\~]|[/\\].*[/\\]|^[A-Za-z]:[/\\]")
WORD = re.compile(r"\w+")
NUMBER = re.compile(r"(\d{1,19})([A-Za-z%]{0,8})")
# Words that engines, drivers and the system say of failures, beyond those that the workbook says itself.
MORE_WORDS = """
    CUDA error out memory device side assert triggered illegal access encountered launch failure timeout
    RuntimeError ValueError OSError KeyError TypeError AssertionError ImportError ModuleNotFoundError
    FileNotFoundError errno no space left on disk connection refused reset by peer broken pipe timed killed SIGKILL
    SIGTERM SIGSEGV NCCL cuBLAS cuDNN Triton torch vLLM Worker EngineCore EngineCor VLLM Worker_TP EngineDeadError
    Traceback most recent call last same parameters measured right after other steps second command same machine its
    trials were laid beside theirs python python3 pt_main_thread sglang tritonserver ray NVIDIA AMD Intel R Xeon
    EPYC Core Processor CPU GPU with at
"""
HARDWARE = re.findall(
    r"\S+",
    """
    NVIDIA AMD Intel(R) Xeon(R) Xeon EPYC Core(TM) Core Ryzen Threadripper Processor CPU GPU @ Gold Silver Bronze
    Platinum Max Tesla GeForce RTX GTX Quadro TITAN PCIe SXM SXM2 SXM3 SXM4 SXM5 HBM2 HBM2e HBM3 HBM3e NVL Ti SUPER
    Laptop Ada Generation Grace Hopper Blackwell Superchip Neoverse Cortex ARM Apple MIG SIMULATED simulated
    Graviton Ampere(R) Altra(R) PRO Edition Server Workstation Gen
    """,
)
MODEL_NUMBER = re.compile(
    r"[A-Za-z]{0,2}(?:\d{1,2}-)?\d{1,5}[A-Za-z+]{0,2}\d{0,2}|\d{1,3}g\.\d{1,3}gb|\d{1,3}-Core|[\d.]{1,6}(?:GHz|GB|MB)|\d{1,2}th"
)
# What a process's name may keep, for it tells gen from embed.
ROLE = re.compile(r"vllm|enginecore|sglang|llama|generat|gen\b|embed|encoder|sentence|e5\b", re.IGNORECASE)


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word, lower case, that the workbook's own code holds in its texts: nobody's secret."""
    words = {word.lower() for word in WORD.findall(MORE_WORDS)}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.update(word.lower() for word in WORD.findall(node.value))
            elif isinstance(node, ast.arg | ast.keyword) and node.arg:
                words.add(node.arg.lower())
    return frozenset(words)


@functools.cache
def bundled_models() -> frozenset[str]:
    """Names of the models whose architecture comes with the workbook."""
    return frozenset(file.parent.name for file in PACKAGE.glob("models/*/model.json"))


def known(word: str) -> bool:
    """Whether a word is one of the workbook's, or a number with its unit."""
    if word.lower() in vocabulary():
        return True
    number = NUMBER.fullmatch(word)
    return number is not None and (not number[2] or number[2].lower() in vocabulary())


class Scrubber:
    """Replaces and counts. One for everything that is shared together: a GPU has the same number in all of it.

    `secrets`: host and user names that are known, to be taken out wherever else they stand.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.secrets = {word for word in secrets if len(word) > 2 and word.lower() not in vocabulary()}
        # Names of the folders that are shared: what they tell is no secret.
        self.folders: set[str] = set()
        self._devices: dict[str, str] = {}
        self._values: dict[str, str] = {}

    def hide(self, kind: str, shown: str = HIDDEN) -> str:
        """Count one more of `kind`; gives what stands in its place."""
        self.counts[kind] += 1
        return shown

    def value(self, value: object) -> str:
        """What stands in for a whole value: the same for the same value, so that different ones stay different."""
        if isinstance(value, str) and HIDDEN_VALUE.fullmatch(value):
            return value
        alias = self._values.setdefault(repr(value), f"(removed {len(self._values) + 1})")
        return self.hide(VALUES, alias)

    def device(self, name: str) -> str:
        """A GPU's or MIG instance's identifier as `GPU 0`, `MIG 0`, …; its index as it is."""
        if DEVICE_ALIAS.fullmatch(name):
            return name
        kind = "MIG" if name.upper().startswith("MIG-") else "GPU"
        key = kind + name.lower().removeprefix("mig-").removeprefix("gpu-").replace("-", "")
        count = sum(alias.startswith(kind) for alias in self._devices.values())
        return self.hide(DEVICES, self._devices.setdefault(key, f"{kind} {count}"))

    def name(self, value: str) -> str:
        """A name that is anybody's, a kernel's: without paths, hosts, addresses, tokens, identifiers."""
        shown = DEVICE.sub(self._identifier, value)
        for kind, pattern in (
            (PATHS, URL),
            (USERS, AT),
            (TOKENS, SECRET),
            (TOKENS, PREFIXED),
            (HOSTS, IPV6),
            (HOSTS, IPV4),
        ):
            shown = pattern.sub(lambda match, kind=kind: self.hide(kind), shown)  # type: ignore[misc]
        shown = LONG.sub(self._drawn, shown)
        for secret in sorted(self.secrets, key=len, reverse=True):
            if secret in shown:
                shown = shown.replace(secret, self.hide(USERS))
        shown = HOST.sub(lambda _: self.hide(HOSTS), shown)
        return PATH.sub(lambda _: self.hide(PATHS), shown)

    def text(self, value: str) -> str:
        """Free text: its first line, of the words that the workbook says and of numbers."""
        lines = value.splitlines() or [""]
        self.counts[LINES] += len(lines) - 1
        parts = re.split(r"(\s+)", self.name(lines[0][:MOST_CHARS]))
        shown = "".join(part if part.isspace() else self._chunk(part) for part in parts)
        return re.sub(r"\(removed\)(?:\s*\(removed\))+", HIDDEN, shown)

    def process(self, value: str) -> str:
        """A process's name, of a path and arguments too: the program, if it is a known one, else its part in this."""
        program = re.split(r"[/\\]", value.split()[0])[-1] if value.split() else ""
        if HIDDEN_VALUE.search(value):
            return value
        if program and program == value and all(known(word) for word in WORD.findall(program)):
            return program
        if all(known(word) for word in WORD.findall(program)):
            return self.hide(PATHS, program)
        return " ".join([*ROLE.findall(program.lower()), self.value(value)])

    def hardware(self, value: str) -> str:
        """The name of a processor or GPU as its maker gives it."""
        return re.sub(r"\S+", lambda word: self._part(word[0]), value)

    def _part(self, word: str) -> str:
        core = word.strip("(),")
        harmless = core in HARDWARE or word in HARDWARE or MODEL_NUMBER.fullmatch(core) or core.isdigit()
        return word if harmless or HIDDEN in word or self._plain(word) else self.hide(MACHINE)

    def _chunk(self, chunk: str) -> str:
        if not chunk or self._plain(chunk):
            return chunk
        head, tail = re.match(r"^[\"'(\[<{]*", chunk), re.search(r"[\"')\]>},.;:!?]*$", chunk)
        first, last = head[0] if head else "", tail[0] if tail else ""
        return first + self.hide(WORDS) + (last if len(first) < len(chunk) else "")

    def _plain(self, chunk: str) -> bool:
        return not PATH_LIKE.search(chunk) and all(known(word) for word in WORD.findall(chunk))

    def _drawn(self, match: re.Match[str]) -> str:
        shown = _without_random(match[0])
        return match[0] if shown is None else self.hide(TOKENS, shown)

    def _identifier(self, match: re.Match[str]) -> str:
        """GPUs by number; another UUID is some identifier of the machine."""
        plain = match[0].lower().replace("-", "")
        if match[0][:3].upper() in ("GPU", "MIG") or f"GPU{plain}" in self._devices:
            return self.device(match[0])
        return self.hide(MACHINE)


def _without_random(word: str) -> str | None:
    """A word without its parts that look drawn by lot, None where it has none. Mangled names only look so."""
    if word.startswith(("_Z", "Z")):
        return None
    shown = "_".join(HIDDEN if _random(part) else part for part in word.split("_"))
    return shown if shown != word else None


def _random(part: str) -> bool:
    if re.fullmatch(r"[0-9a-f]{32,}|[0-9A-F]{32,}", part):
        return True
    kinds = sum(bool(re.search(kind, part)) for kind in (r"\d", r"[a-z]", r"[A-Z]"))
    syllables = re.findall(r"[a-z]+|[A-Z]+", part)
    return len(part) >= 20 and kinds == 3 and max(map(len, syllables)) <= 4
