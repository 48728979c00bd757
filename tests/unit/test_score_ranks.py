"""Scores of a real model: as if each example were alone, and the same records from one, two and three ranks.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.scoring import SimulatedWorld, Waiting
from trainer.data.collate import Batch
from trainer.data.tokenize import PromptEncoder
from trainer.engine.generation import greedy_continuation
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.score import score_task
from trainer.evaluation.suite import EvaluationTask
from trainer.evaluation.suite_schema import SuiteTask

V = 64
EOS = 0
CPU = torch.device("cpu")

# fp32 sums of at most thirty terms of size 5.
ROUNDING = 1e-5


@dataclass
class ModelEngine:
    """A model on one rank; counts what is asked of it."""

    model: LlamaForCausalLM
    world: SimulatedWorld = field(default_factory=SimulatedWorld)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    cache_obstacle: str = "a stand-in takes each candidate as a text of its own"

    def forward(self, batch: Batch) -> Tensor:
        self.shapes.append(tuple(batch.input_ids_BT.shape))
        return self.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).logits

    def generate(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, max_new_tokens: int) -> Tensor:
        self.shapes.append(tuple(input_ids_BT.shape))
        return greedy_continuation(
            self.model, input_ids_BT, attention_mask_BT, max_new_tokens=max_new_tokens, synced_gpus=False
        )


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.6,  # large enough for clear preferences
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    """One id a byte for 63 characters of ASCII, after </s>."""
    words = ["</s>", *(chr(code) for code in range(ord("@"), ord("@") + V - 1))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>"))


def example_of(
    encoder: PromptEncoder, prompt: str, *, target: str, candidates: Sequence[str] = (), number: int = 0
) -> EvaluationExample:
    return EvaluationExample(
        example_id=f"id{number}",
        prompt=prompt,
        target=target,
        candidates=tuple(candidates),
        prompt_ids=tuple(encoder.text_ids(prompt)),
        candidate_ids=tuple(tuple(encoder.text_ids(candidate)) for candidate in candidates),
    )


def task_of(kind: str, **fields: Any) -> EvaluationTask:
    fields |= {"choices_column": "c"} if kind == "choice" else {}
    spec = SuiteTask.model_validate({"kind": kind, "data": "d", "prompt": "p", "response": "r", **fields})
    return EvaluationTask(name="n", capability="n", examples="n", group="base", spec=spec)


def texts(encoder: PromptEncoder, count: int) -> list[EvaluationExample]:
    """Prompts of 1 to 5 letters and responses of 1 to 8."""
    letters = "abcdefghijklmnopqrst"
    pieces = [(letters[n % 7 : n % 7 + 1 + n % 5], letters[n % 11 : n % 11 + 1 + (3 * n) % 8]) for n in range(count)]
    return [example_of(encoder, p, target=r, candidates=[r], number=n) for n, (p, r) in enumerate(pieces)]


def choices(encoder: PromptEncoder, count: int) -> list[EvaluationExample]:
    """Three candidates of different lengths for each text."""
    return [
        example_of(encoder, e.prompt, target=e.target, candidates=[e.target, "zz", "A" + e.target], number=n)
        for n, e in enumerate(texts(encoder, count))
    ]


def questions(encoder: PromptEncoder, count: int) -> list[EvaluationExample]:
    return [example_of(encoder, e.prompt, target=e.target, number=n) for n, e in enumerate(texts(encoder, count))]


def scored(
    engine: Any,
    task: EvaluationTask,
    examples: Sequence[EvaluationExample],
    encoder: PromptEncoder,
    *,
    examples_per_batch: int = 4,
) -> list[ExampleRecord]:
    return score_task(
        engine, task, examples, encoder=encoder, examples_per_batch=examples_per_batch, check_stop=lambda: None
    ).records


def nats_alone(model: LlamaForCausalLM, prompt_ids: Sequence[int], candidate_ids: Sequence[int]) -> float:
    """Minus log-likelihood of a candidate, one sequence at a time, without padding: position t - 1 predicts t."""
    ids = [*prompt_ids, *candidate_ids]
    with torch.no_grad():
        log_p_TV = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(log_p_TV[t - 1, ids[t]].item() for t in range(len(prompt_ids), len(ids)))


def simulated_ranks(
    model: LlamaForCausalLM,
    task: EvaluationTask,
    examples: Sequence[EvaluationExample],
    encoder: PromptEncoder,
    *,
    size: int,
) -> Iterator[tuple[ModelEngine, list[ExampleRecord]]]:
    """Each rank once until it waits for the others, then each once more with the parts of all."""
    parts: dict[int, Any] = {}
    for rank in range(size - 1):
        with pytest.raises(Waiting):
            scored(ModelEngine(model, SimulatedWorld(rank, size, parts)), task, examples, encoder)
    scored(ModelEngine(model, SimulatedWorld(size - 1, size, parts)), task, examples, encoder)
    for rank in range(size):
        engine = ModelEngine(model, SimulatedWorld(rank, size, parts))
        yield engine, scored(engine, task, examples, encoder)


def test_a_padded_batch_gives_the_nats_of_each_text_alone(model: LlamaForCausalLM, encoder: PromptEncoder) -> None:
    examples = texts(encoder, 17)
    records = scored(ModelEngine(model), task_of("text"), examples, encoder)
    wanted = [nats_alone(model, example.prompt_ids, example.candidate_ids[0]) for example in examples]
    assert [record.value for record in records] == pytest.approx(wanted, rel=ROUNDING)
    assert [record.weight for record in records] == [len(example.candidate_ids[0]) for example in examples]
    # Counted one token too early, the second text (prompt of two letters) would cost clearly another number.
    shifted = nats_alone(
        model, examples[1].prompt_ids[:1], (*examples[1].prompt_ids[1:], *examples[1].candidate_ids[0])
    )
    assert shifted != pytest.approx(wanted[1], rel=1000 * ROUNDING)


def test_the_pick_of_a_model_is_the_candidate_with_the_fewest_nats(
    model: LlamaForCausalLM, encoder: PromptEncoder
) -> None:
    examples = choices(encoder, 17)
    records = scored(ModelEngine(model), task_of("choice"), examples, encoder, examples_per_batch=5)
    for example, record in zip(examples, records, strict=True):
        nats = [nats_alone(model, example.prompt_ids, ids) for ids in example.candidate_ids]
        assert record.answer == example.candidates[nats.index(min(nats))]
        assert record.value == float(record.answer == example.target)


def test_generated_answers_are_those_of_each_prompt_alone(model: LlamaForCausalLM, encoder: PromptEncoder) -> None:
    # Prompts of one batch are padded on the left; a wrong mask or a wrong side would change what is said.
    examples = questions(encoder, 9)
    task = task_of("generate", max_new_tokens=6)
    together = scored(ModelEngine(model), task, examples, encoder)
    alone = scored(ModelEngine(model), task, examples, encoder, examples_per_batch=1)
    assert [record.answer for record in together] == [record.answer for record in alone]
    assert len({record.answer for record in together}) > 1


def test_a_generated_answer_is_scored_against_the_trimmed_target(
    model: LlamaForCausalLM, encoder: PromptEncoder
) -> None:
    task = task_of("generate", max_new_tokens=4)
    (said,) = scored(ModelEngine(model), task, [example_of(encoder, "abc", target="Z")], encoder)
    assert said.answer
    assert (said.value, said.weight, said.scorer) == (0.0, 1.0, "exact_match@1")
    (right,) = scored(ModelEngine(model), task, [example_of(encoder, "abc", target=f" {said.answer}\n")], encoder)
    assert right.value == 1.0


@pytest.mark.parametrize("kind", ["text", "choice", "generate"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [1, 13])
def test_several_ranks_give_the_records_of_one_bit_for_bit(
    model: LlamaForCausalLM, encoder: PromptEncoder, kind: str, size: int, count: int
) -> None:
    task = task_of(kind, max_new_tokens=3)
    examples = {"text": texts, "choice": choices, "generate": questions}[kind](encoder, count)
    alone = ModelEngine(model)
    wanted = scored(alone, task, examples, encoder)
    # Candidates are cut by tokens, the others by number; of R ranks each has the same ceil(batches / R) passes.
    if kind != "choice":
        assert len(alone.shapes) == -(-count // 4)
    for engine, records in simulated_ranks(model, task, examples, encoder, size=size):
        assert records == wanted
        assert len(engine.shapes) == -(-len(alone.shapes) // size)
        assert set(engine.shapes) <= set(alone.shapes)


def test_a_batch_that_fills_up_the_last_round_is_counted_once(model: LlamaForCausalLM, encoder: PromptEncoder) -> None:
    # 13 texts in 4 batches over 3 ranks: two rounds, of which two ranks repeat the last batch and throw it away.
    ranks = simulated_ranks(model, task_of("text"), texts(encoder, 13), encoder, size=3)
    parts = [engine.world.parts[engine.world.rank] for engine, _ in ranks]
    assert [len(part) for part in parts] == [5, 4, 4]
    assert len({key for part in parts for key in part}) == 13


def test_the_longest_batch_comes_first(model: LlamaForCausalLM, encoder: PromptEncoder) -> None:
    engine = ModelEngine(model)
    scored(engine, task_of("text"), texts(encoder, 17), encoder)
    widths = [width for _, width in engine.shapes]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 1


def test_the_order_of_the_examples_is_kept_and_changes_no_record(
    model: LlamaForCausalLM, encoder: PromptEncoder
) -> None:
    # Neighbours in a batch move with the order, and with them the order of sums inside a kernel.
    examples = texts(encoder, 17)
    forward = scored(ModelEngine(model), task_of("text"), examples, encoder)
    backward = scored(ModelEngine(model), task_of("text"), examples[::-1], encoder)
    assert [record.id for record in forward] == [example.example_id for example in examples]
    for one, other in zip(forward, backward[::-1], strict=True):
        assert (one.id, one.prompt_sha256, one.weight) == (other.id, other.prompt_sha256, other.weight)
        assert one.value == pytest.approx(other.value, rel=ROUNDING)
