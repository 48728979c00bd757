"""Which parameters a run holds and which it trains, counted from names and shapes as torch and peft will hold them."""

import math
from dataclasses import dataclass

from launch.model_facts import ModelFacts
from trainer.config.errors import ConfigError
from trainer.config.freezing import frozen_names
from trainer.config.module_names import LABEL_HEADS, TOKEN_EMBEDDINGS
from trainer.config.schema import LoraSection, RunConfig

Shapes = dict[str, tuple[int, ...]]

_NO_LINEAR_LAYER = (*TOKEN_EMBEDDINGS, "wpe", "embed_positions", "embeddings", "lm_head", "score", "classifier")
"""Matrices that `lora.targets: all-linear` leaves out: embeddings and the output heads that peft knows."""

_LANGUAGE_HEADS = ("lm_head", "cls", "vocab_transform", "vocab_layer_norm", "vocab_projector", "qa_outputs")
_PREFIXES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "opt"), "model"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), "roberta"),
    **{"gpt2": "transformer", "bert": "bert", "distilbert": "distilbert"},
}
"""What a model with a head puts before the names of a model without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Every parameter of a run, by whether gradients reach it."""

    base: Shapes
    """Weights of the model itself, a fresh head included."""

    frozen: Shapes
    """Those of the base that are not trained."""

    trainable_elements: tuple[int, ...]
    """Size of each trained tensor: base weights, adapters, and the copies that are trained beside a frozen base."""

    @property
    def num_frozen(self) -> int:
        """Elements without gradients."""
        return sum(math.prod(shape) for shape in self.frozen.values())

    @property
    def num_trainable(self) -> int:
        """Elements with gradients."""
        return sum(self.trainable_elements)


def count_parameters(config: RunConfig, facts: ModelFacts) -> tuple[int, int]:
    """(frozen, trainable) parameters, as torch counts them: what peft trains in full is there twice.

    Raises:
        ConfigError: `freeze` or `lora` names nothing of the model.
    """
    parameters = read_parameters(config, facts)
    return parameters.num_frozen, parameters.num_trainable


def read_parameters(config: RunConfig, facts: ModelFacts) -> Parameters:
    """The parameters of a run.

    Raises:
        ConfigError: `freeze` or `lora` names nothing of the model.
    """
    loaded = _loaded(facts, labels=len(config.labels))
    fresh = _fresh_head(facts, loaded, labels=len(config.labels))
    base = loaded | fresh
    if config.method == "full":
        kept = frozen_names(base, config.freeze)
        trained = tuple(math.prod(shape) for name, shape in base.items() if name not in kept)
        return Parameters(
            base=base, frozen={name: base[name] for name in base if name in kept}, trainable_elements=trained
        )
    lora = config.lora_or_default
    modules = base if config.labels else base | _tied_head(facts, base)
    _refuse_tied_targets(lora, is_tied=_is_tied(facts, base) and not config.labels)
    whole = (*lora.train_in_full, *_modules(fresh), *(("classifier", "score") if config.labels else ()))
    copies = [math.prod(shape) for shape in _trained_in_full(modules, whole, is_tied=_is_tied(facts, base)).values()]
    adapters = _adapters(facts, modules, lora, whole=whole)
    return Parameters(base=base, frozen=base, trainable_elements=(*copies, *adapters))


def _loaded(facts: ModelFacts, *, labels: int) -> Shapes:
    """Stored weights that the model takes, under the names it gives them. Other heads stay in the file."""
    left_out = _LANGUAGE_HEADS if labels else LABEL_HEADS
    prefix = _PREFIXES.get(facts.model_type)
    shapes: Shapes = {}
    for name, shape in facts.shapes.items():
        first = name.split(".")[0]
        if first in left_out:
            continue
        known = prefix is None or first in (prefix, *_LANGUAGE_HEADS, *LABEL_HEADS)
        shapes[name if known else f"{prefix}.{name}"] = shape
    if labels and prefix == "roberta":
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("roberta.pooler.")}
    return shapes


def _fresh_head(facts: ModelFacts, loaded: Shapes, *, labels: int) -> Shapes:
    """Weights of a classification head that the files do not hold."""
    if not labels:
        return {}
    width = facts.geometry.embedding_size if facts.geometry else _embedding_width(loaded)
    match _PREFIXES.get(facts.model_type):
        case "bert":
            head = _linear("bert.pooler.dense", width, width) | _linear("classifier", width, labels)
        case "roberta":
            head = _linear("classifier.dense", width, width) | _linear("classifier.out_proj", width, labels)
        case "distilbert":
            head = _linear("pre_classifier", width, width) | _linear("classifier", width, labels)
        case _:
            head = {"score.weight": (labels, width)}
    return {name: shape for name, shape in head.items() if name not in loaded}


def _linear(module: str, inputs: int, outputs: int) -> Shapes:
    return {f"{module}.weight": (outputs, inputs), f"{module}.bias": (outputs,)}


def _embedding_width(shapes: Shapes) -> int:
    return next(shape[1] for shape in shapes.values() if len(shape) == 2)


def _modules(shapes: Shapes) -> tuple[str, ...]:
    return tuple(sorted({name.rpartition(".")[0] for name in shapes}))


def _is_tied(facts: ModelFacts, base: Shapes) -> bool:
    return facts.geometry is not None and facts.geometry.tied_head and "lm_head.weight" not in base


def _tied_head(facts: ModelFacts, base: Shapes) -> Shapes:
    """The output head as a module of its own, where it shares the weights of the embeddings."""
    embedding = next((shape for name, shape in base.items() if name.split(".")[-2:-1] and _embeds(name)), None)
    return {"lm_head.weight": embedding} if _is_tied(facts, base) and embedding else {}


def _embeds(name: str) -> bool:
    return name.split(".")[-2] in TOKEN_EMBEDDINGS


def _refuse_tied_targets(lora: LoraSection, *, is_tied: bool) -> None:
    """peft would merge two updates into the one weight that embeddings and head share, and the model would be wrong."""
    shared = [name for name in lora.targets if name.split(".")[-1] in (*TOKEN_EMBEDDINGS, "lm_head")]
    if is_tied and lora.targets != "all-linear" and shared:
        raise ConfigError(
            f"lora.targets: found {shared[0]!r}, but the model's embeddings and output head share their weights, and "
            f"an update of one cannot be merged. Remove it, or train it whole: lora.train_in_full=[{shared[0]}]."
        )


def _trained_in_full(modules: Shapes, whole: tuple[str, ...], *, is_tied: bool) -> Shapes:
    """Weights of which peft trains a copy: those under a module whose path ends in one of `whole`, dot or no dot."""
    chosen = {name: shape for name, shape in modules.items() if _is_within(name, whole)}
    if is_tied and any(_embeds(name) for name in chosen):
        chosen.pop("lm_head.weight", None)  # the copies share their weights as the originals do
    return chosen


def _is_within(name: str, whole: tuple[str, ...]) -> bool:
    parts = name.split(".")[:-1]
    paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(path.endswith(target) for path in paths for target in whole)


def _adapters(facts: ModelFacts, modules: Shapes, lora: LoraSection, *, whole: tuple[str, ...]) -> list[int]:
    """Sizes of the adapters: rank * in and rank * out for each adapted matrix; DoRA adds one for each output.

    Raises:
        ConfigError: no matrix of the model has one of the target names.
    """
    matrices = {name: shape for name, shape in modules.items() if len(shape) == 2 and name.endswith(".weight")}
    free = {name: shape for name, shape in matrices.items() if not _is_within(name, whole)}
    adapted = {name: shape for name, shape in free.items() if _is_target(name, lora)}
    if not adapted:
        linear = sorted({name.split(".")[-2] for name in matrices})
        raise ConfigError(
            f"lora.targets: found {lora.targets!r}, but the model has no such layer. Layers with a matrix: "
            f"{', '.join(linear)}."
        )
    sizes = [lora.rank * side for shape in adapted.values() for side in shape]
    if lora.dora:
        by_column = {name for name in adapted if is_transposed(facts, name) or _embeds(name)}
        sizes += [shape[1] if name in by_column else shape[0] for name, shape in adapted.items()]
    return sizes


def is_transposed(facts: ModelFacts, name: str) -> bool:
    """The matrix is stored as (in, out): GPT-2's Conv1D."""
    return facts.model_type == "gpt2" and ".h." in f".{name}"


def _is_target(tensor_name: str, lora: LoraSection) -> bool:
    module = tensor_name.removesuffix(".weight")
    if lora.targets == "all-linear":
        return not set(_NO_LINEAR_LAYER) & set(module.split("."))
    return any(module == target or module.endswith(f".{target}") for target in lora.targets)
