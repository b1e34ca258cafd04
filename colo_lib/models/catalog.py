"""The models that ship as config files: what they are, how a parameter's value finds one, and the sizes that follow.

Sizes follow from an architecture alone: parameters, weight bytes, KV cache, activations. That is pure arithmetic on a
model's published config.json. The parameter formulas are those of the transformers classes (modeling_llama,
modeling_qwen2, modeling_qwen3, modeling_qwen3_moe, modeling_bert); a test counts the real modules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.errors import InputError, suggest
from colo_lib.params import Params

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """One model: its architecture, and where published weights are."""

    name: str
    folder: Path
    config: dict[str, Any]
    role: str
    hub_id: str | None
    pooling: str | None
    licence: str

    @property
    def architecture(self) -> str:
        """The class that the config names."""
        return str((self.config.get("architectures") or ["?"])[0])

    @property
    def parameters(self) -> int:
        """Parameters as this role loads the model."""
        return count_parameters(self.config, self.role).total

    def source(self, weights: str) -> str:
        """What the engine loads: the folder of the config for dummy weights, the hub's id for published ones."""
        if weights == "hub" and self.hub_id is None and self.folder.parent == FOLDER:
            raise InputError(
                f"model {self.name!r} has no published weights; set weights: dummy, or choose another model"
            )
        return self.hub_id if weights == "hub" and self.hub_id else str(self.folder)


def names(role: str | None = None) -> list[str]:
    """Names of the shipped models, of one role or of both."""
    folders = (file.parent for file in sorted(FOLDER.glob("*/config.json")))
    return [folder.name for folder in folders if role is None or _read(folder / "model.json")["role"] == role]


def find_model(name: str, role: str) -> Model:
    """The model that a parameter names, for `role` gen or embed: a shipped name, or a folder with a config.json.

    Raises InputError with the nearest right name, or when a shipped model is of the other role.
    """
    shipped = name in names()
    folder = FOLDER / name if shipped else Path(name).expanduser()
    if not shipped and not (folder / "config.json").is_file():
        raise InputError(
            f"{role}_model = {name!r}: no such model; {suggest(name, names(role))} "
            "(or give a folder that holds a config.json)"
        )
    facts = _read(folder / "model.json") if (folder / "model.json").is_file() else {}
    if facts.get("role", role) != role:
        other = ", ".join(names(role))
        raise InputError(f"{role}_model = {name!r}: that model is for {facts['role']}_model; for {role}: {other}")
    return Model(
        name=name if shipped else folder.name,
        folder=folder.absolute(),
        config=_read(folder / "config.json"),
        role=role,
        hub_id=facts.get("hub_id"),
        pooling=facts.get("pooling"),
        licence=facts.get("licence") or "not stated",
    )


def models_of(params: Params) -> tuple[Model, Model]:
    """(gen, embed) of a params file; raises InputError for a name that is not known."""
    return find_model(params.gen_model, "gen"), find_model(params.embed_model, "embed")


def _read(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable JSON file: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: a model's description is a JSON object")
    return loaded


GIB = 2**30
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DECODERS = ("llama", "qwen2", "qwen3", "qwen3_moe")
MODEL_TYPES = (*DECODERS, "bert")
LOGIT_BYTES = 4  # vLLM and transformers take logits in float32

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by what becomes of them: `linear` may be quantized, `other` (norms, biases) is never split."""

    embedding: int
    linear: int
    head: int
    other: int
    linear_active: int
    """Of `linear`, what one token passes through: less than all in a mixture of experts."""

    @property
    def total(self) -> int:
        """All parameters that are stored."""
        return self.embedding + self.linear + self.head + self.other

    @property
    def active(self) -> int:
        """Parameters that one token passes through."""
        return self.total - self.linear + self.linear_active


def count_parameters(config: Config, role: str = "gen") -> ParameterCount:
    """Count a model's parameters; role `embed` is the bare model, without the head that turns states into tokens.

    Raises InputError for an architecture that the workbook cannot count, or a config that lacks a size.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputError(f"model type {model_type!r} is not one that the workbook can size: {', '.join(MODEL_TYPES)}")
    try:
        return _count_bert(config) if model_type == "bert" else _count_decoder(config, role)
    except KeyError as error:
        raise InputError(f"the model's config.json lacks {error.args[0]!r}") from None


def _count_decoder(config: Config, role: str) -> ParameterCount:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    queries, keys = _attention_widths(config)
    mlp, mlp_active = _mlp_sizes(config)
    # q, k, v and o projections; RMSNorm before attention and before the MLP, and one after the last layer.
    attention = hidden * (queries + 2 * keys) + queries * hidden
    table = config["vocab_size"] * hidden
    tied = config.get("tie_word_embeddings", False)
    return ParameterCount(
        embedding=table,
        linear=layers * attention + mlp,
        head=0 if tied or role == "embed" else table,
        other=layers * (2 * hidden + _attention_extras(config)) + hidden,
        linear_active=layers * attention + mlp_active,
    )


def head_dim(config: Config) -> int:
    """Width of one attention head; Qwen3 names it, the others divide the hidden size."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _kv_heads(config: Config) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _attention_widths(config: Config) -> tuple[int, int]:
    width = head_dim(config)
    return config["num_attention_heads"] * width, _kv_heads(config) * width


def _attention_extras(config: Config) -> int:
    """Biases and per-head norms of one layer: Qwen2 has q, k, v biases; Qwen3 normalises q and k instead."""
    queries, keys = _attention_widths(config)
    if config["model_type"] == "qwen2":
        return queries + 2 * keys
    biases = queries + 2 * keys + config["hidden_size"] if config.get("attention_bias") else 0
    return biases + (2 * head_dim(config) if config["model_type"].startswith("qwen3") else 0)


def _mlp_sizes(config: Config) -> tuple[int, int]:
    """(stored, passed through by one token) over all layers; gate, up and down projection, or a router and experts."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    dense = 3 * hidden * config["intermediate_size"]
    if config["model_type"] != "qwen3_moe":
        return layers * dense, layers * dense
    only_dense, every = set(config.get("mlp_only_layers") or ()), config.get("decoder_sparse_step", 1)
    sparse = sum(layer not in only_dense and (layer + 1) % every == 0 for layer in range(layers))
    expert, router = 3 * hidden * config["moe_intermediate_size"], hidden * config["num_experts"]
    stored = sparse * (router + config["num_experts"] * expert) + (layers - sparse) * dense
    active = sparse * (router + config["num_experts_per_tok"] * expert) + (layers - sparse) * dense
    return stored, active


def _count_bert(config: Config) -> ParameterCount:
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    linear = layers * (4 * hidden * hidden + 2 * hidden * inner) + hidden * hidden  # the last one is the pooler
    biases = layers * (4 * hidden + inner + hidden) + hidden
    norms = layers * 4 * hidden + 2 * hidden
    rows = config["vocab_size"] + config["max_position_embeddings"] + config.get("type_vocab_size", 2)
    return ParameterCount(rows * hidden, linear, 0, biases + norms, linear)


@dataclass(frozen=True)
class TokenFlops:
    """Floating-point operations of one token in a forward pass, a multiplication and an addition counting as two."""

    linear: float
    """Products with the weights of linear layers, which may be quantized."""
    head: float
    """The logits of one token; 0 for an embedder."""
    context: float
    """For each token that it attends to, itself included."""

    def attended(self, tokens: float, behind: float = 0, causal: bool = True) -> float:
        """One of `tokens` tokens that follow `behind` others, on average: all it attends to, without the head."""
        seen = behind + ((tokens + 1) / 2 if causal else tokens)
        return self.linear + self.context * seen


def token_flops(config: Config, role: str) -> TokenFlops:
    """Counts one token's operations; raises InputError as `count_parameters` does.

    Sources: Kaplan et al. 2020, Scaling Laws for Neural Language Models (arXiv 2001.08361), section 2.1 and table 1:
    two for each parameter of a linear layer that the token passes through; Chowdhery et al. 2022, PaLM (arXiv
    2204.02311), appendix B: 12 L H Q T for scores and values forwards and backwards, so 4 L H Q T forwards, with L
    layers, H Q the width of the queries and T the tokens attended to. In a mixture of experts a token passes through
    its own experts alone. Norms, activations and rotations are left out, as there; so is BERT's pooler, which sees one
    token of a sequence.
    """
    count = count_parameters(config, role)
    bert = config["model_type"] == "bert"
    linear = count.linear_active - (config["hidden_size"] ** 2 if bert else 0)
    width = config["hidden_size"] if bert else _attention_widths(config)[0]
    head = 2.0 * config["vocab_size"] * config["hidden_size"] if role == "gen" else 0.0
    return TokenFlops(2.0 * linear, head, 4.0 * config["num_hidden_layers"] * width)


def looks_back_only(config: Config) -> bool:
    """Whether a token attends to those before it alone, as in decoders; BERT's attend to all."""
    return config["model_type"] != "bert"


def weight_bytes(config: Config, role: str, dtype: str, quantization: str = "", shards: int = 1) -> float:
    """Bytes of weights on each of `shards` devices.

    Under dynamic fp8 vLLM stores the linear layers in one byte a parameter and keeps embeddings, head and norms in
    `dtype` (vLLM's fp8 quantization page). Tensor parallelism splits everything but norms and biases.
    """
    count, size = count_parameters(config, role), DTYPE_BYTES[dtype]
    split = count.linear * (1 if quantization == "fp8" else size) + (count.embedding + count.head) * size
    return split / shards + count.other * size


def kv_bytes_per_token(config: Config, dtype: str, shards: int = 1) -> int:
    """Bytes of KV cache a token takes on each device: key and value, every layer, every key-value head it holds.

    Heads are split over the shards, and kept at one each where there are fewer than shards (vLLM's Attention layer).
    """
    held = max(1, -(-_kv_heads(config) // shards))
    return 2 * int(config["num_hidden_layers"]) * held * head_dim(config) * DTYPE_BYTES[dtype]


def activation_bytes(config: Config, tokens: int, dtype: str, logit_rows: int = 0, shards: int = 1) -> float:
    """Estimated peak bytes of one forward pass over `tokens` tokens at once, without gradients.

    One layer's working set lives at a time: residual, normed input and output (3 hidden), q, k, v and the attention
    output, then gate, up and their product (3 intermediate); the larger of the two halves counts. Attention is fused,
    so no score matrix. `logit_rows` rows of vocabulary-wide float32 logits come on top. An estimate, good to a factor
    of two; measured memory stands in the run's telemetry.
    """
    queries, keys = _attention_widths(config)
    inner, hidden = config["intermediate_size"], config["hidden_size"]
    if config["model_type"] == "qwen3_moe":
        # Every token is copied to each of its experts.
        inner = config["num_experts_per_tok"] * (config["moe_intermediate_size"] + hidden)
    layer = max(2 * queries + 2 * keys, 3 * inner) / shards
    return tokens * (3 * hidden + layer) * DTYPE_BYTES[dtype] + logit_rows * config["vocab_size"] * LOGIT_BYTES
