"""Which weights stay as they were: a rule over names, and the same one for the plan and for the ranks."""

import pytest

from tests.recipe import Recipe
from trainer.config.errors import ConfigError
from trainer.config.freezing import frozen_names
from trainer.config.schema import FreezeSection

LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{block}.{part}.weight" for block in range(12) for part in ("self_attn.q_proj", "mlp.up_proj")),
    "model.norm.weight",
    "lm_head.weight",
]
GPT2 = ["wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.1.attn.c_attn.bias", "ln_f.weight"]


def frozen(names: list[str], **settings: object) -> set[str]:
    return frozen_names(names, FreezeSection.model_validate(settings))


def test_without_the_section_nothing_is_frozen() -> None:
    assert frozen_names(LLAMA, None) == set()
    assert frozen(LLAMA) == set()


def test_embeddings_are_found_by_their_usual_names() -> None:
    assert frozen(LLAMA, embeddings=True) == {"model.embed_tokens.weight"}
    assert frozen(GPT2, embeddings=True) == {"wte.weight", "wpe.weight"}


def test_the_first_layers_are_counted_by_number_not_by_text() -> None:
    # Layers 0 and 1, and not 10 and 11, which begin with the same digit.
    found = frozen(LLAMA, first_layers=2)
    assert found == {name for name in LLAMA if ".layers.0." in name or ".layers.1." in name}
    assert frozen(GPT2, first_layers=1) == {"h.0.attn.c_attn.weight"}


def test_patterns_are_searched_anywhere_in_a_name() -> None:
    assert len(frozen(LLAMA, patterns=["mlp"])) == 12
    assert frozen(LLAMA, patterns=["^lm_head", "norm"]) == {"lm_head.weight", "model.norm.weight"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patterns": ["nowhere"]}, r"freeze\.patterns: 'nowhere': no weight of the model has such a name"),
        ({"first_layers": 13}, r"freeze\.first_layers: found 13, but the model has 12 layers"),
        ({"patterns": [""]}, "every weight of the model would be frozen"),
    ],
)
def test_a_rule_that_freezes_nothing_or_everything_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        frozen(LLAMA, **settings)


def test_the_plan_counts_what_will_be_frozen(recipe: Recipe) -> None:
    # The tiny model has 720 parameters, 256 of them in its embeddings.
    memory = recipe.plan("freeze={embeddings: true}").memory
    assert (memory.num_parameters, memory.num_trainable_parameters) == (720, 720 - 256)


def test_freezing_belongs_to_full_fine_tuning(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="a `freeze` section is given but method is 'lora'"):
        recipe.config("method=lora", "freeze={embeddings: true}")


def test_a_pattern_that_is_no_regular_expression_is_refused_with_its_key(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"freeze\.patterns: not a regular expression: "):
        recipe.config("freeze.patterns=['(']")
