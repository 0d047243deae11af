"""On-policy generation, with a real tokenizer and a tiny random model made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_vision import STOP as TURN_END
from tiny_vision import PatchProcessor, encoded, image_part, picture, text_part, vision_tokenizer, write_lines
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec_core.config.run import DataSection
from specdec_core.data.generate import generate_conversations, is_loop, remaining_prompts
from specdec_core.data.images import ImageReader
from specdec_core.data.media_reader import MediaReader
from specdec_core.data.prepare import prepare_dataset
from specdec_core.data.prompts import PromptReader, moved, read_prompts
from specdec_core.data.template import ChatTemplate
from specdec_core.errors import UserError, UserErrors

SPECIAL = ["<pad>", "<end>", "<system>", "<user>", "<assistant>"]
WORDS = [f"w{i}" for i in range(60)]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
STOP = SPECIAL.index("<end>")


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=STOP,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def greedy(model):
    def generate(prompts: list[list[int]], limit: int, extras: object = ()) -> list[list[int]]:
        answers = []
        for ids in prompts:
            output = model.generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False)
            answers.append(output[0, len(ids) :].tolist())
        return answers

    return generate


def prompt(name: str, *questions: str) -> dict:
    return {"id": name, "conversations": [{"role": "user", "content": text} for text in questions]}


def script(tokenizer, answers: dict[str, str]):
    """A generate function that answers a question by what `answers` says, with a stop token unless cut."""

    def generate(prompts: list[list[int]], limit: int, extras: object = ()) -> list[list[int]]:
        assert not extras
        questions = [tokenizer.decode(ids).split("<user>")[-1].split("<end>")[0].strip() for ids in prompts]
        return [[*tokenizer.encode(answers[question]), STOP][:limit] for question in questions]

    return generate


def run(prompts, tokenizer, generate, **options):
    settings = {"max_new_tokens": 12, "batch_size": 2, **options}
    reader = PromptReader(ChatTemplate(tokenizer, [STOP]))
    return list(generate_conversations(prompts, reader=reader, generate=generate, **settings))


def test_every_answer_is_the_models_own_continuation(tokenizer, greedy):
    prompts = [prompt(f"p{i}", *(f"w{i} w{i + turn} w7" for turn in range(1 + i % 3))) for i in range(10)]
    records = run(prompts, tokenizer, greedy, drop_loops=False)
    turns = 0
    for record in records:
        messages = record["conversations"]
        for i in range(1, len(messages), 2):
            context = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, tokenize=False)
            [tokens] = greedy([tokenizer(context, add_special_tokens=False)["input_ids"]], 12)
            assert messages[i] == {
                "role": "assistant",
                "content": tokenizer.decode(tokens, skip_special_tokens=True),
            }
            assert record.get("truncated", False) == (i == len(messages) - 1 and len(tokens) == 12)
            turns += 1
    assert [record["id"] for record in records] == [p["id"] for p in prompts]
    assert turns >= len(prompts)


def test_all_turns_are_answered_in_the_order_of_the_prompts(tokenizer):
    generate = script(tokenizer, {"w1": "w10 w11", "w2": "w12", "w3 w3 w3": "w13"})
    records = run([prompt("a", "w3 w3 w3"), prompt("b", "w1", "w2"), prompt("c", "w2")], tokenizer, generate)
    assert [record["id"] for record in records] == ["a", "b", "c"]
    assert records[1]["conversations"] == [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w10 w11"},
        {"role": "user", "content": "w2"},
        {"role": "assistant", "content": "w12"},
    ]
    assert not any("truncated" in record for record in records)


def test_images_reach_the_model_with_the_prompt_they_stand_in(tmp_path: Path):
    tokenizer = vision_tokenizer()
    processor = PatchProcessor(tokenizer)
    (tmp_path / "prompts" / "images").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "prompts" / "images" / f"{number}.png").write_bytes(encoded(picture(40 + 30 * number, 60)))
    asked = [
        {"id": "a", "messages": [{"role": "user", "content": [image_part("images/0.png"), text_part("one")]},
                                 {"role": "user", "content": [text_part("two"), image_part("images/1.png")]}]},
        {"id": "b", "messages": [{"role": "user", "content": "three"}]},
        {"id": "c", "messages": [{"role": "user", "content": [image_part(tmp_path / "prompts" / "images" / "2.png")]}]},
    ]  # fmt: skip
    file = write_lines(tmp_path / "prompts" / "prompts.jsonl", *asked)
    media = MediaReader(processor, ImageReader(tmp_path / "downloads"))
    prompts = read_prompts(file, media, tmp_path)
    seen: list[int] = []

    def generate(ids, limit, extras):
        for of_prompt, inputs in zip(ids, extras, strict=True):
            pads = of_prompt.count(processor.pads["image"])
            grids = inputs.get("image_grid_thw", torch.zeros(0, 3))
            assert 4 * pads == int(grids.prod(dim=1).sum()) == len(inputs.get("pixel_values", ()))
            seen.append(len(grids))
        return [[*tokenizer.encode("it is a river"), TURN_END] for _ in ids]

    reader = PromptReader(ChatTemplate(tokenizer, [TURN_END], markers=processor.markers), media, tmp_path)
    records = list(
        generate_conversations(prompts, reader=reader, generate=generate, max_new_tokens=20, batch_size=3)
    )  # fmt: skip
    assert sorted(seen) == [0, 1, 1, 2]
    questions = [message["content"] for record in records for message in record["conversations"][::2]]
    assert questions == [
        [image_part("prompts/images/0.png"), text_part("one")],
        [text_part("two"), image_part("prompts/images/1.png")],
        "three",
        [image_part(tmp_path / "prompts" / "images" / "2.png")],
    ]
    # What is written is training data where it was written.
    out = write_lines(tmp_path / "out.jsonl", *records)
    section = DataSection(cache_dir=tmp_path / "cache")
    report = prepare_dataset(section, [out], tokenizer, (TURN_END,), media=processor).report
    assert (report.conversations, report.media) == (3, 3)
    (tmp_path / "prompts" / "images" / "0.png").unlink()
    with pytest.raises(UserError, match=r'prompt "a": image 1 \(prompts/images/0\.png\) is missing'):
        list(generate_conversations(prompts, reader=reader, generate=generate, max_new_tokens=20, batch_size=3))
    with pytest.raises(UserErrors, match=r"prompts\.jsonl:1: image 1 \(images/0\.png\) is missing"):
        read_prompts(file, media)


def test_sources_are_rewritten_only_where_they_must_be(tmp_path: Path):
    given = [
        "a.png", "b/../a.png", "/abs/a.png", "file:///abs/a.png", "http://host/a.png", "data:image/png;base64,AA",
    ]  # fmt: skip
    content = [{"type": "video", "video": given}, {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "in")
    for directory, prefix in (("in", ""), ("out", ""), (".", "in/")):
        video, image = moved(content, tmp_path / "in", tmp_path / directory)
        paths = [f"{prefix}a.png"] * 2 if prefix else given[:2]
        assert video["video"] == [*paths, *given[2:]]
        assert image["image_url"] == {"url": f"{prefix}a.png", "detail": "low"}


def test_system_messages_stay_and_given_answers_are_replaced(tokenizer):
    given = [
        {"role": "system", "content": "w9"},
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w40"},
    ]
    [record] = run([{"id": "a", "conversations": given}], tokenizer, script(tokenizer, {"w1": "w10"}))
    assert record["conversations"] == [*given[:2], {"role": "assistant", "content": "w10"}]


def test_a_cut_answer_is_marked_and_ends_the_conversation(tokenizer):
    generate = script(tokenizer, {"w1": "w10 w11 w12 w13"})
    [record] = run([prompt("a", "w1", "w2")], tokenizer, generate, max_new_tokens=3)
    assert record["truncated"] is True
    assert record["conversations"][1:] == [{"role": "assistant", "content": "w10 w11 w12"}]


def test_a_loop_ends_the_conversation_before_it_and_drops_it_if_it_is_the_first(tokenizer):
    generate = script(tokenizer, {"w1": "w10", "w2": " ".join(["w5"] * 20)})
    prompts = [prompt("a", "w2", "w1"), prompt("b", "w1", "w2")]
    [record] = run(prompts, tokenizer, generate, max_new_tokens=40)
    assert record["id"] == "b"
    assert [message["content"] for message in record["conversations"]] == ["w1", "w10"]
    kept = run(prompts, tokenizer, generate, max_new_tokens=40, drop_loops=False)
    assert [len(record["conversations"]) for record in kept] == [4, 4]


def test_an_empty_answer_is_dropped(tokenizer):
    assert run([prompt("a", "w1")], tokenizer, script(tokenizer, {"w1": ""})) == []


def test_loops_are_repeated_runs_of_tokens_or_repeated_long_lines():
    assert not is_loop(list(range(8)) * 3, "")
    assert is_loop(list(range(8)) * 4, "")
    assert is_loop([], "The same long line again.\n" * 3)
    assert not is_loop([], "    return x\n" * 9)


def test_progress_counts_the_handled_prompts_chunk_by_chunk(tokenizer):
    seen: list[int] = []
    run([prompt(str(i), "w1") for i in range(11)], tokenizer, script(tokenizer, {"w1": "w2"}), on_progress=seen.append)
    assert seen == [8, 11]


def test_an_interrupted_run_goes_on_after_its_last_whole_line(tmp_path: Path):
    prompts = [prompt(name, "w1") for name in "abcd"]
    output = tmp_path / "out.jsonl"
    assert remaining_prompts(prompts, output) == prompts
    output.write_text(json.dumps(prompts[0]) + "\n" + json.dumps(prompts[2]) + "\n" + '{"id": "d", "conv')
    assert remaining_prompts(prompts, output) == prompts[3:]
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize(
    "content", ["my only notes, without a newline", "plain text\n", '{"no": "id"}\n', '{"id": "a"}\nnotes', "[1]\n"]
)
def test_a_file_that_holds_something_else_is_left_as_it_is(content: str, tmp_path: Path):
    output = tmp_path / "notes.txt"
    output.write_text(content)
    with pytest.raises(UserError, match=r"notes\.txt exists and holds something else than answered prompts"):
        remaining_prompts([prompt("a", "w1")], output)
    assert output.read_text() == content


def test_an_output_file_of_other_prompts_is_refused(tmp_path: Path):
    output = tmp_path / "out.jsonl"
    output.write_text(json.dumps(prompt("z", "w1")) + "\n")
    with pytest.raises(UserError, match=r"out\.jsonl.*'z'.*another output file"):
        remaining_prompts([prompt("a", "w1")], output)
