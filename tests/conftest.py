"""A tiny random target with a tokenizer and a chat template, and a few conversations; made once a session."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from specdec_core.config.run import TargetSection
from specdec_core.target.base import Target

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "the a of to and in is it for on with as at by from red blue green seven eight nine apple river mountain "
    "code prints counts adds returns loop list number word answer question because therefore small large quick"
)


def sentences(count: int, seed: int) -> list[str]:
    """Nonsense made of a few words, digits included."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choice([*TEXT.split(), str(rng.randrange(100))]) for _ in range(rng.randint(4, 12))).capitalize()
        + "."
        for _ in range(count)
    ]


def build_tokenizer(directory: Path, vocab_size: int = 512) -> None:
    """Train a byte-level BPE tokenizer with a ChatML template and save it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(400, seed=0) + ["user assistant system\n"] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices run slower on several threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 8 layers (H 64, 4 heads, 2 key-value heads, V 512) in float32, with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny-target")
    build_tokenizer(directory)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_target(tiny_target_dir: Path) -> Target:
    """`tiny_target_dir`, loaded through the causal-lm backbone."""
    from specdec_causal_lm.backbone import CausalLMBackbone
    from specdec_causal_lm.config import CausalLMConfig

    return CausalLMBackbone(CausalLMConfig()).load(TargetSection(path=str(tiny_target_dir)), "cpu")


@pytest.fixture(scope="session")
def conversations_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of 40 conversations of one to three exchanges."""
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    rng = random.Random(1)
    with path.open("w") as file:
        for index in range(40):
            texts = sentences(2 * rng.randint(1, 3), seed=index + 2)
            roles = ["user", "assistant"] * (len(texts) // 2)
            turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            file.write(json.dumps({"id": f"c{index}", "conversations": turns}) + "\n")
    return path
