"""What a transformers config, generation config and tokenizer say about a target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import TemplateError

from specdec_core.config.run import TargetSection
from specdec_core.target.base import TargetFacts

PROBE = "\N{SNOWMAN}"


def read_facts(target: TargetSection, config: Any, generation: Any, tokenizer: Any) -> TargetFacts:
    """Facts from a transformers config (its text part), a generation config or None, and the tokenizer.

    Each fact is looked for under the names that model families give it; one that a family leaves unsaid, or names
    otherwise, is for its backbone to replace.
    """
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    return TargetFacts(
        name_or_path=target.path,
        model_type=text.model_type,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        intermediate_size=text.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=_first(text, "num_key_value_heads") or heads,
        head_dim=_first(text, "head_dim") or text.hidden_size // heads,
        hidden_act=_first(text, "hidden_act", "hidden_activation", "activation_function"),
        rms_norm_eps=_first(text, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps") or 1e-6,
        max_position_embeddings=text.max_position_embeddings,
        rope_parameters=_rope(text),
        attention_bias=bool(_first(text, "attention_bias", "qkv_bias")),
        tie_word_embeddings=bool(config.tie_word_embeddings),
        dtype=target.dtype,
        bos_token_id=_first(tokenizer, "bos_token_id"),
        stop_token_ids=stop_tokens((generation, config, text, tokenizer), tokenizer),
    )


def stop_tokens(sources: Iterable[Any], tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: `eos_token_id` of each source, and what the chat template closes a turn with."""
    stops: set[int] = set()
    for source in sources:
        eos = getattr(source, "eos_token_id", None)
        stops.update([eos] if isinstance(eos, int) else eos or ())
    end = turn_end(tokenizer)
    return tuple(sorted(stops if end is None else stops | {end}))


def turn_end(tokenizer: Any) -> int | None:
    """The special token that follows an assistant's words in the tokenizer's chat template, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # the data room says what is wrong with it
        return None
    after = tokenizer(text.rpartition(PROBE)[2].lstrip(), add_special_tokens=False)["input_ids"]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return after[0] if after and after[0] in special else None


def _rope(text: Any) -> dict[str, Any]:
    """One flat set of rope parameters; where layer types differ, the full attention's."""
    rope = dict(_first(text, "rope_parameters") or {})
    return dict(rope.get("full_attention") or rope)


def _first(source: Any, *names: str) -> Any:
    """The first of these attributes that is there and not None."""
    return next((value for name in names if (value := getattr(source, name, None)) is not None), None)
