"""What an embedding server is asked, and whether its answer is what was asked for: OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

# What a status means for the one who reads it.
REMEDIES = {
    400: "it does not take these inputs: lower embed_batch_size or embed_sequence_tokens, or give a server that takes "
    "token ids",
    401: "it wants a key: give it in the environment variable COLO_EMBED_KEY",
    403: "it wants another key: give it in the environment variable COLO_EMBED_KEY",
    404: "it has no such model or no /v1/embeddings: see embed_url and embed_url_model",
    413: "the request is too large for it: lower embed_batch_size or embed_sequence_tokens",
    422: "it does not take these inputs: lower embed_batch_size, or give a server that takes token ids",
    429: "it is asked too much at once: lower embed_concurrency",
    503: "it is overloaded or still starting: lower embed_concurrency, or wait for it",
}


class EmbedAnswerWrong(Exception):
    """An answer that is not what was asked for; says what, and the remedy."""


def request_body(model: str, inputs: list[list[int]], encoding: str) -> dict[str, Any]:
    """The JSON of one request: token ids go in as they are, so that what is computed is exact."""
    return {"model": model, "input": inputs, "encoding_format": encoding}


def http_sentence(status: int, content: bytes) -> str:
    """What an answer with another status than 200 says, with the remedy."""
    remedy = REMEDIES.get(status, "see its log" if status >= 500 else "see embed_url")
    said = " ".join(content[:300].decode(errors="replace").split())
    return f"the embedding server answered HTTP {status} ({said}): {remedy}"


def check_answer(content: bytes, sequences: int, width: int, tokens: int) -> None:
    """Raises EmbedAnswerWrong unless `content` holds `sequences` finite vectors of `width` numbers, of all tokens."""
    found = vectors(content)
    if len(found) != sequences:
        raise EmbedAnswerWrong(
            f"the embedding server sent {len(found)} vectors for {sequences} sequences: it is no server of "
            "OpenAI's /v1/embeddings; see embed_url"
        )
    widths = sorted({len(vector) for vector in found})
    if widths != [width]:
        raise EmbedAnswerWrong(
            f"the embedding server sends vectors of {', '.join(map(str, widths))} numbers, embed_model has {width}: "
            "it serves another model; name that one in embed_model, or give another embed_url"
        )
    if not all(np.isfinite(vector).all() for vector in found):
        raise EmbedAnswerWrong(
            "the embedding server sends vectors that are not finite: its weights or its dtype are wrong; try "
            "embed_dtype: bfloat16 or float32"
        )
    counted = (json.loads(content).get("usage") or {}).get("prompt_tokens")
    if counted is not None and counted < tokens:
        raise EmbedAnswerWrong(
            f"the embedding server counted {counted} tokens of the {tokens} that it was sent: it cuts them; lower "
            "embed_sequence_tokens"
        )


def vectors(content: bytes) -> list[Any]:
    """The vectors of an answer, float32 each; raises EmbedAnswerWrong for what is no such answer."""
    try:
        answer = json.loads(content)
        return [_vector(item["embedding"]) for item in answer["data"]]
    except (ValueError, KeyError, TypeError):
        said = " ".join(content[:200].decode(errors="replace").split())
        raise EmbedAnswerWrong(
            f"the embedding server's answer is none of OpenAI's /v1/embeddings ({said}): see embed_url"
        ) from None


def _vector(sent: str | list[float]) -> Any:
    if isinstance(sent, str):
        return np.frombuffer(base64.b64decode(sent), dtype="<f4")
    return np.asarray(sent, dtype="<f4")
