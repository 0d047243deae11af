from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_targets import PlainSession, PlainTarget, ScriptedDrafter
from rich.console import Console
from torch import Tensor
from toy_runs import toy_config, train
from typer.testing import CliRunner

from specdec_core.algorithm.proposal import Drafter
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.cli.generate import print_stream
from specdec_core.cli.main import app
from specdec_core.config.run import RunConfig
from specdec_core.data.batch import Batch
from specdec_core.decode.loop import Emission, prompt_batch
from specdec_core.decode.text import TextStream
from specdec_core.errors import UserError
from specdec_core.evaluate.compare import TIE, compare
from specdec_core.evaluate.evaluator import ALONE, Evaluation, EvaluationError, Method, evaluate
from specdec_core.evaluate.overlap import Overlap
from specdec_core.evaluate.prompts import Prompt
from specdec_core.evaluate.report import as_json, render
from specdec_core.evaluate.run import DRAFT, Measured

VOCAB = 64
BASELINE = "n-gram lookup"


def counting(text: list[int], n: int) -> list[int]:
    return [(text[-1] + 1 + i) % VOCAB for i in range(n)]


def half_right(text: list[int], n: int) -> list[int]:
    """The second token is wrong."""
    return [token + (i == 1) for i, token in enumerate(counting(text, n))]


def counting_logits(ids: Tensor) -> Tensor:
    return torch.eye(VOCAB)[(ids + 1) % VOCAB]


def asked(*ids: int, category: str = "sums", name: str = "p") -> Prompt:
    """A prompt of ids, as `encode` reads them."""
    return Prompt(name, category, ({"role": "user", "content": " ".join(map(str, ids))},))


def encode(prompt: Prompt) -> Batch:
    return prompt_batch(torch.tensor([int(word) for word in prompt.text.split()], dtype=torch.int64))


def draft(script: Callable[[list[int], int], Sequence[int]] = counting, k: int = 3, name: str = DRAFT) -> Method:
    return Method(name, k, lambda: ScriptedDrafter(script))


# Comparison


def test_identical_output_asks_for_no_logits() -> None:
    def gap(position: int, a: int, b: int) -> float:
        raise AssertionError

    assert compare([1, 2, 3], [1, 2, 3], gap).verdict == "identical"


@pytest.mark.parametrize(
    ("distance", "verdict"), [(0.0, "tie"), (TIE * 0.99, "tie"), (TIE, "different"), (1, "different")]
)
def test_the_first_difference_decides(distance: float, verdict: str) -> None:
    asked = []

    def gap(*where: int) -> float:
        asked.append(where)
        return distance

    found = compare([1, 2, 3, 4], [1, 2, 5, 6, 7], gap)
    assert (found.verdict, found.position, found.gap) == (verdict, 2, distance)
    assert asked == [(2, 3, 5)]


@pytest.mark.parametrize("other", [[1, 2], [1, 2, 3, 4]])
def test_an_output_that_ends_elsewhere_is_no_tie(other: list[int]) -> None:
    assert compare([1, 2, 3], other, lambda *_: 0.0).verdict == "different"


class RoundingTarget(PlainTarget):
    """Counts; after 5 the tokens 6 and 1 lie `apart`, and forwards of several tokens shift 1 up by twice that.

    Token 2 lies far below; `third` forwards prefer it there, which no rounding explains.
    """

    def __init__(self, apart: float, third: bool = False, dtype: str = "float32") -> None:
        def next_logits(ids: Tensor) -> Tensor:
            logits = counting_logits(ids)
            logits[ids == 5, 1] = 1 - apart
            return logits

        super().__init__(next_logits, VOCAB)
        self.apart, self.third = apart, third
        self.facts = replace(self.facts, dtype=dtype)

    def decode(self, plan: CapturePlan, capacity: int) -> PlainSession:
        return RoundingSession(self, capacity)


class RoundingSession(PlainSession):
    target: RoundingTarget

    def forward(self, ids: Tensor, parents: Sequence[int] | None = None) -> tuple[Tensor, Features]:
        logits, features = super().forward(ids, parents)
        if len(ids) > 1:
            logits[ids == 5, 2 if self.target.third else 1] += 2 if self.target.third else 2 * self.target.apart
        return logits, features


def run(target: PlainTarget, *methods: Method, prompts: Sequence[Prompt] = (asked(0),)) -> Evaluation:
    return evaluate(target, prompts, encode, methods, max_new_tokens=20)


def test_a_tie_is_counted_and_passes() -> None:
    evaluation = run(RoundingTarget(apart=3e-5), draft())
    (result,) = evaluation.of(evaluation.methods[1])
    assert result.comparison is not None
    assert (result.comparison.verdict, result.comparison.position) == ("tie", 5)
    assert result.comparison.gap == pytest.approx(3e-5, rel=0.01)
    assert result.tokens != evaluation.of(ALONE)[0].tokens
    evaluation.check()
    assert "0 of 1 are identical to the target's own, 1 up to a tie (logits less than 0.0001 apart)" in text_of(
        evaluation
    )


@pytest.mark.parametrize(("target", "gap"), [(RoundingTarget(3e-3), "0.003"), (RoundingTarget(3e-5, third=True), "1")])
def test_a_difference_fails(target: PlainTarget, gap: str) -> None:
    evaluation = run(target, draft())
    assert "1 DIFFER" in text_of(evaluation)
    with pytest.raises(EvaluationError) as caught:
        evaluation.check()
    assert str(caught.value) == (
        "1 of 1 greedy outputs differ from the target's own; the first: draft, k = 3, prompt p, token 5, where the "
        f"tokens' logits lie {gap} apart; decoding was not lossless, so none of these figures counts"
    )
    assert isinstance(caught.value, UserError)


def test_a_difference_in_low_precision_is_shown_and_passes() -> None:
    evaluation = run(RoundingTarget(3e-3, dtype="bfloat16"), draft())
    evaluation.check()
    assert "1 DIFFER (bfloat16 rounds; only float32 shows whether decoding is lossless)" in text_of(evaluation)


# Evaluation


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time passes only where it is spent."""
    now = 0.0

    def spend(amount: float) -> None:
        nonlocal now
        now += amount

    monkeypatch.setattr("specdec_core.decode.clock.time.perf_counter", lambda: now)
    return spend


def timed_target(spend: Callable[[float], None]) -> PlainTarget:
    def logits(ids: Tensor) -> Tensor:
        spend(1.0)
        return counting_logits(ids)

    return PlainTarget(logits, VOCAB)


def timed(spend: Callable[[float], None], script: Callable[[list[int], int], Sequence[int]]) -> Callable[..., Any]:
    def slow(text: list[int], n: int) -> Sequence[int]:
        spend(0.5)
        return script(text, n)

    return slow


def test_speed_is_that_of_the_decode_phase(seconds: Callable[[float], None]) -> None:
    methods = [
        draft(timed(seconds, counting), k=3),
        draft(timed(seconds, half_right), k=2),
        draft(counting, 3, BASELINE),
    ]
    evaluation = evaluate(timed_target(seconds), [asked(0), asked(9)], encode, methods, max_new_tokens=17)
    alone, perfect, half, free = (evaluation.tally(method) for method in evaluation.methods)
    assert (alone.tau, alone.tokens_per_second, alone.acceptance) == (1.0, 1.0, ())
    assert (perfect.tau, perfect.tokens_per_second, perfect.acceptance) == (4.0, 4 / 1.5, (1.0, 1.0, 1.0))
    assert (half.tau, half.acceptance) == (2.0, (1.0, 0.0))
    assert [evaluation.speedup(m) for m in evaluation.methods] == [1.0, 4 / 1.5, 2 / 1.5, 4.0]
    assert perfect.tokens_per_second_with_prefill == 34 / (2 * (4 * 1.5 + 1))
    assert evaluation.best(DRAFT) is methods[0]
    assert (alone.prompts, free.tokens, free.rounds) == (2, 32, 8)


def test_methods_take_turns_in_alternating_order() -> None:
    order: list[str] = []

    def noted(name: str) -> Method:
        def make() -> Drafter:
            order.append(name)
            return ScriptedDrafter(counting)

        return Method(name, 2, make)

    done: list[tuple[int, int]] = []
    evaluate(
        PlainTarget(counting_logits, VOCAB),
        [asked(0), asked(1), asked(2)],
        encode,
        [noted("a"), noted("b")],
        max_new_tokens=3,
        on_progress=lambda *count: done.append(count),
    )
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # a warm-up, then each prompt
    assert done == [(i, 9) for i in range(1, 10)]


def test_sampled_output_is_not_compared_and_repeats_with_the_seed() -> None:
    target = PlainTarget(lambda ids: counting_logits(ids) * 3, VOCAB)

    def texts(seed: int) -> list[tuple[int, ...]]:
        evaluation = evaluate(target, [asked(0)], encode, [draft()], max_new_tokens=30, temperature=1.0, seed=seed)
        assert all(result.comparison is None for result in evaluation.results)
        assert "Outputs were sampled" in text_of(evaluation)
        return [result.tokens for result in evaluation.results]

    assert texts(0) == texts(0) != texts(1)


def test_stop_tokens_end_the_texts_of_all_alike() -> None:
    target = PlainTarget(counting_logits, VOCAB, stop_token_ids=(9,))
    evaluation = evaluate(target, [asked(0)], encode, [draft(k=4)], max_new_tokens=60)
    assert {result.tokens for result in evaluation.results} == {tuple(range(1, 10))}


def test_prompts_are_checked_before_anything_is_decoded() -> None:
    target = PlainTarget(counting_logits, VOCAB, context=4)
    with pytest.raises(UserError, match="prompt long has 4 tokens and the target's context holds 4"):
        evaluate(target, [asked(1), asked(1, 2, 3, 4, name="long")], encode, [], max_new_tokens=5)
    with pytest.raises(UserError, match=r"no prompts to evaluate on: name some in eval\.prompts or with --prompts"):
        evaluate(target, [], encode, [], max_new_tokens=5)


# The report


def text_of(evaluation: Evaluation, overlaps: dict[str, Overlap] | None = None, draft_dtype: str = "float32") -> str:
    console = Console(width=250, file=io.StringIO())
    console.print(render(Measured(evaluation, overlaps or {}, draft_dtype)), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def evaluation(seconds: Callable[[float], None]) -> Evaluation:
    prompts = [asked(0), asked(9), asked(30, category="poems", name="q")]
    methods = [
        draft(timed(seconds, counting), k=2),
        draft(timed(seconds, counting), k=3),
        draft(timed(seconds, half_right), 3, BASELINE),
    ]
    return evaluate(timed_target(seconds), prompts, encode, methods, max_new_tokens=25)


def test_the_report_says_what_was_found_and_how(evaluation: Evaluation) -> None:
    text = text_of(evaluation, {"prompts": Overlap(8, 1, 8), "outputs": Overlap(8, 0, 0)})
    for expected in (
        "With the draft: 2.67× the target's own speed",
        "Speed: 1.0 → 2.7 tokens/s with k = 3 draft tokens, the fastest of 2, 3.",
        "τ = 4.00 tokens per forward of the target.",
        "N-gram lookup, for comparison: 1.33×, τ = 2.00 (chain, k = 3).",
        "Outputs: all 9 are identical to the target's own.",
        "8-word sequences that stand in the training text too: prompts 12.5%, outputs too short to tell.",
        "plain; chain, T = 0, at most 25 new tokens; 3 prompts (sums 2, poems 1); float32, cpu",
        "3 identical",
        "100% 100% 100%",
    ):
        assert expected in text
    table = {tuple(line.split()[:2]) for line in text.splitlines()}
    assert {("target", "alone"), ("draft", "2"), ("draft", "3"), ("poems", "(1)")} <= table


def test_a_draft_of_another_type_than_the_targets_is_said_to_be(evaluation: Evaluation) -> None:
    assert "float32, the draft int8, cpu" in text_of(evaluation, draft_dtype="int8")


def test_a_draft_that_slows_the_target_down_is_called_that(seconds: Callable[[float], None]) -> None:
    wrong = draft(timed(seconds, lambda text, n: [0] * n), k=3)
    evaluation = evaluate(timed_target(seconds), [asked(0)], encode, [wrong], max_new_tokens=26)
    assert "With the draft: 0.68× the target's own speed (SLOWER)" in text_of(evaluation)


def test_the_json_holds_everything(evaluation: Evaluation) -> None:
    found = json.loads(json.dumps(as_json(Measured(evaluation, {"prompts": Overlap(8, 1, 8)}, "int8"))))
    assert found["conditions"]["prompts"] == {"sums": 2, "poems": 1}
    assert found["conditions"]["draft_dtype"] == "int8"
    assert {"drafting", "temperature", "max_new_tokens", "dtype", "device", "threads"} <= found["conditions"].keys()
    assert found["best_num_draft_tokens"] == 3
    by_name = {(m["method"], m["num_draft_tokens"]): m for m in found["methods"]}
    best = by_name["draft", 3]
    assert (best["tau"], best["outputs"]) == (4.0, {"identical": 3})
    assert best["speedup"] == pytest.approx(4 / 1.5)
    assert best["categories"]["poems"]["tally"]["tokens"] == 24
    assert found["overlap"]["prompts"] == {"n": 8, "shared": 1, "total": 8, "share": 0.125}
    assert len(found["results"]) == 4 * 3
    assert {r["comparison"] and r["comparison"]["verdict"] for r in found["results"]} == {None, "identical"}


# The commands, on a target that counts bytes upwards


class ByteTokenizer:
    """A byte a token; a chat is its last message. Token 10, the newline, stops."""

    def encode(self, messages: Sequence[dict[str, Any]], directory: Path = Path()) -> Batch:
        return prompt_batch(torch.tensor(list(Prompt("", "", tuple(messages)).text.encode())))

    def decode(self, ids: Sequence[int], **options: object) -> str:
        return bytes(ids).replace(b"\n", b"").decode(errors="replace")


def byte_logits(ids: Tensor) -> Tensor:
    """The alphabet in order, and é after z; then a newline."""
    after = {ord("z"): 0xC3, 0xC3: 0xA9, 0xA9: 10}
    return torch.eye(256)[[after.get(token, token + 1) for token in ids.tolist()]]


def byte_drafter() -> Drafter:
    return ScriptedDrafter(lambda text, n: byte_logits(torch.tensor(text[-1:])).argmax(-1).tolist())


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """The commands on a run in memory; overrides of `eval.` reach its config."""

    def open_run(path: Path, registry: object, *, overrides: Sequence[str] = ()) -> SimpleNamespace:
        raw: dict[str, Any] = {"target": {"path": "x"}, "backbone": "x", "algorithm": "x"}
        raw["data"] = {"train": [str(tmp_path / "train.jsonl")]}
        raw["eval"] = {"max_new_tokens": 40, "num_draft_tokens": 2}
        raw["eval"] |= {key.removeprefix("eval."): value for key, value in (o.split("=") for o in overrides)}
        tokenizer = ByteTokenizer()
        target = PlainTarget(byte_logits, 256, stop_token_ids=(10,), tokenizer=tokenizer)
        return SimpleNamespace(
            config=RunConfig.model_validate(raw),
            resolved=SimpleNamespace(prompts=(), baselines=()),
            target=target,
            media=None,
            encoder=lambda: tokenizer,
            plan=CapturePlan(last_hidden=True),
            drafter=byte_drafter,
            draft_dtype="float32",
            target_step=None,
        )

    monkeypatch.setattr("specdec_core.checkpoint.open.open_for_decoding", open_run)

    def invoke(*arguments: str, stdin: str | None = None) -> Any:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return invoke


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "letters.jsonl"
    path.write_text('{"prompt": "say a"}\n{"prompt": "say b"}\n{"prompt": "say c"}\n')
    return path


def test_eval_prints_a_table(cli: Callable[..., Any], prompts: Path) -> None:
    done = cli("eval", "run", "--prompts", str(prompts), "--k", "1,2")
    assert done.exit_code == 0, done.output
    assert "all 6 are identical" in " ".join(done.stdout.split())
    assert "at most 40 new tokens; 3 prompts (letters 3)" in " ".join(done.stdout.split())


def test_eval_prints_json_alone_on_stdout(cli: Callable[..., Any], prompts: Path) -> None:
    options = ["--max-new-tokens", "9", "--max-prompts", "2", "--temperature", "0.5", "--json"]
    done = cli("eval", "run", "--prompts", str(prompts), *options)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [m["num_draft_tokens"] for m in found["methods"]] == [0, 2]
    conditions = found["conditions"]
    assert (conditions["max_new_tokens"], conditions["temperature"], conditions["prompts"]) == (9, 0.5, {"letters": 2})


def test_eval_counts_what_stands_in_the_training_text(cli: Callable[..., Any], prompts: Path, tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine"
    prompts.write_text(json.dumps({"prompt": words + " a"}))
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": "b"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"conversations": turns}) + "\n{ a bad line\n")
    found = json.loads(cli("eval", "run", "--prompts", str(prompts), "--json").stdout)
    assert found["overlap"]["prompts"] == {"n": 8, "shared": 2, "total": 3, "share": 2 / 3}
    (tmp_path / "train.jsonl").unlink()
    assert json.loads(cli("eval", "run", "--prompts", str(prompts), "--json").stdout)["overlap"] == {}


@pytest.mark.parametrize("k", ["0", "a", "2,,3", "1.5", "-1", "²"])
def test_a_bad_k_is_named(cli: Callable[..., Any], k: str) -> None:
    done = cli("eval", "run", f"--k={k}")
    assert done.exit_code == 2
    assert f"error: --k is {k}; it takes whole numbers from 1 up, such as 4 or 2,3,4" in done.stderr


def test_eval_without_prompts(cli: Callable[..., Any]) -> None:
    done = cli("eval", "run")
    assert done.exit_code == 2
    assert "there are no prompts to evaluate on" in done.stderr


@pytest.mark.parametrize("options", [[], ["--no-draft"], ["--k", "7"]])
def test_generate_prints_plain_text_and_the_figures_apart(cli: Callable[..., Any], options: list[str]) -> None:
    done = cli("generate", "run", "say u", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == "vwxyzé\n"
    drafting = (
        "target alone" if options == ["--no-draft"] else f"chain, k = {(options or '2')[-1]} (1 proposed at most)"
    )
    assert f"({drafting}, T = 0)" in done.stderr
    # One token comes with the prompt; of the other seven, with the draft, two come with a forward.
    assert done.stderr.startswith("τ 1.00: 7 tokens in 7" if "--no-draft" in options else "τ 1.75: 7 tokens in 4")


def test_generate_reads_stdin(cli: Callable[..., Any]) -> None:
    assert cli("generate", "run", "--max-new-tokens", "3", stdin="say a").stdout == "bcd\n"
    assert cli("generate", "run", "-", "eval.max_new_tokens=3", stdin="say a").stdout == "bcd\n"
    empty = cli("generate", "run", stdin=" \n")
    assert empty.exit_code == 2
    assert "the prompt is empty" in empty.stderr


def test_accepted_tokens_are_coloured_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", highlight=False)
    stream = TextStream(ByteTokenizer())
    emissions = [
        Emission(tuple(b"a"), 0, 0, 0, 0, 0, True),
        Emission(tuple(b"bcd"), 2, 2, 2, 0, 0),
        Emission((10,), 0, 0, 0, 0, 0),
    ]
    print_stream(emissions, stream, console)
    assert file.getvalue() == "a\x1b[32mb\x1b[0m\x1b[32mc\x1b[0md\n"


@pytest.mark.usefixtures("toy")
def test_a_trained_run_is_measured_and_used_through_the_command(
    tiny_target_dir: Path, conversations_file: Path, tmp_path: Path
) -> None:
    pack = {"name": "jsonl", "path": str(conversations_file), "limit": 8, "category": "chats"}
    settings = {"prompts": [pack], "max_new_tokens": 12, "num_draft_tokens": 3}
    config = toy_config(
        tiny_target_dir, conversations_file, tmp_path / "run", train={"max_steps": 1, "save_every": None}, eval=settings
    )
    run_directory, _ = train(config)

    measured = CliRunner().invoke(app, ["eval", str(run_directory), "eval.max_new_tokens=9", "--json"])
    assert measured.exit_code == 0, measured.output
    found = json.loads(measured.stdout)
    assert (found["conditions"]["max_new_tokens"], found["conditions"]["prompts"]) == (9, {"chats": 8})
    of_prompts = found["overlap"]["prompts"]
    assert of_prompts["shared"] == of_prompts["total"] > 0  # they are the training text
    assert all(method["outputs"] == {"identical": 8} for method in found["methods"][1:])

    texts = [
        CliRunner().invoke(app, ["generate", str(run_directory), "A small apple?", *options]).stdout
        for options in ([], ["--no-draft"], ["--k", "1"])
    ]
    assert len(set(texts)) == 1
    assert texts[0].strip()
