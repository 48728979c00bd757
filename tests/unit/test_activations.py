"""Activations by hand, for layers small enough to add up."""

from typing import Any

import pytest

from launch.activations import activation_bytes, logit_bytes
from launch.model_facts import Geometry, read_geometry
from tests.recipe import Recipe

T = 16
"""Tokens of the recipe's longest sequence."""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "hidden_act": "silu",
}
BERT = {**LLAMA, "model_type": "bert", "hidden_act": "gelu", "num_key_value_heads": None}
OPT = {**BERT, "model_type": "opt", "activation_function": "relu", "hidden_act": None}
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 4, "vocab_size": 32}
CLASSIFIER = ("objective=classification", "classification={labels: [a, b, c]}")

# A Llama layer of H = 8, F = 16, 4 heads of 2, keys and values of 2 heads, fp32, bytes a token:
# 2 norms: input, normalised value, 1 / RMS: 2 * (32 + 32 + 4) = 136
# inputs of q, k, v: 32, of gate and up: 32; o's is the output of attention, down's the gated product: 64
# attention: q 32, k 16, v 16, output 32, log-sum-exp 4 * 4 = 16: 112
# gate, act(gate), up: 3 * 64 = 192
LLAMA_LAYER = 136 + 32 + 32 + 64 + 112 + 192
# The last norm 68, the input of the head 32, ids 16.
LLAMA_OUTSIDE = 68 + 32 + 16


def geometry(config: dict[str, Any], **changes: Any) -> Geometry:
    found = read_geometry({**config, **changes})
    assert found is not None
    return found


def bytes_of(recipe: Recipe, model: Geometry, *overrides: str, **changes: Any) -> int:
    settings: dict[str, Any] = {"strategy": "single", "examples_per_microbatch": 1, "device": "cuda"}
    settings |= {"activation_checkpointing": False, **changes}
    return activation_bytes(recipe.config(*overrides), model, **settings)


def test_a_layer_keeps_what_the_backward_pass_needs(recipe: Recipe) -> None:
    assert bytes_of(recipe, geometry(LLAMA)) == T * (2 * LLAMA_LAYER + LLAMA_OUTSIDE)


def test_several_examples_bring_a_mask_and_repeat_shared_heads(recipe: Recipe) -> None:
    # k and v of all 4 heads: 2 * 16 more; the mask of a layer: T values of 4 bytes for each token.
    layer = LLAMA_LAYER + 32 + 4 * T
    assert bytes_of(recipe, geometry(LLAMA), examples_per_microbatch=2) == 2 * T * (2 * layer + LLAMA_OUTSIDE)
    padded = bytes_of(recipe, geometry(LLAMA), "data.padding=sequence_length")
    assert padded == T * (2 * layer + LLAMA_OUTSIDE)
    flash = bytes_of(recipe, geometry(LLAMA), "model.attention=flash_attention_2", examples_per_microbatch=2)
    assert flash == 2 * T * (2 * LLAMA_LAYER + LLAMA_OUTSIDE)


def test_eager_attention_keeps_all_scores(recipe: Recipe) -> None:
    # q, and k and v of 4 heads: 96 instead of 112 - the input of o, 32, is not the kernel's output any more -
    # and a score of 4 bytes for each of 4 heads and T tokens.
    layer = LLAMA_LAYER - 112 + 96 + 32 + 4 * 4 * T
    found = bytes_of(recipe, geometry(LLAMA), "model.attention=eager")
    assert found == T * (2 * layer + LLAMA_OUTSIDE)


def test_autocast_copies_inputs_for_each_layer_and_weights_for_the_step(recipe: Recipe) -> None:
    # Norms stay in fp32: 136. 16-bit inputs of q, k, v: 3 * 16, of gate and up: 2 * 16, of down: 32.
    # Attention 16 + 8 + 8 + 16 and 16 of log-sum-exp; MLP 3 * 32. Head: norm 68, input 16, ids 16.
    layer = 136 + 48 + 32 + 32 + 64 + 96
    # Weights: 2 * 8 * (8 + 4) of attention and 3 * 8 * 16 of the MLP, 2 bytes; the head 8 * 32.
    copies = 2 * (192 + 384)
    found = bytes_of(recipe, geometry(LLAMA), "training.precision=bf16")
    assert found == 2 * (T * layer + copies) + T * (68 + 16 + 16) + 2 * 256


def test_zero_computes_in_16_bits_without_copies(recipe: Recipe) -> None:
    # Norms: fp32 input 32, normalised 16, 4; twice. Inputs 16, 16, 32. Attention 64. MLP 96. Head: 52, 16, 16.
    layer = 2 * 52 + 16 + 16 + 32 + 64 + 96
    found = bytes_of(recipe, geometry(LLAMA), "training.precision=bf16", strategy="zero2")
    assert found == T * (2 * layer + 52 + 16 + 16)


def test_frozen_linear_layers_keep_no_input(recipe: Recipe) -> None:
    # Adapters on q and v keep their input, 32, and 2 * rank 3 * 4; norms keep no normalised value: 72 instead of 136.
    layer = 72 + 32 + 24 + 112 + 192
    lora = ("method=lora", "lora={rank: 3, targets: [q_proj, v_proj]}")
    assert bytes_of(recipe, geometry(LLAMA), *lora) == T * (2 * layer + 36 + 16)
    # The head trained in full needs its input: 32.
    whole = ("method=lora", "lora={rank: 3, targets: [q_proj, v_proj], train_in_full: [lm_head]}")
    assert bytes_of(recipe, geometry(LLAMA), *whole) == T * (2 * layer + 36 + 16 + 32)


def test_all_linear_adapts_every_layer_but_the_head(recipe: Recipe) -> None:
    # Norms 72; inputs of q, k, v 32, of gate and up 32, of down 64, o's is the kernel's; 7 ranks of 4; 112 and 192.
    layer = 72 + 32 + 32 + 64 + 28 + 112 + 192
    assert bytes_of(recipe, geometry(LLAMA), "method=lora", "lora={rank: 1}") == T * (2 * layer + 36 + 16)


def test_dropout_before_an_adapter_gives_each_its_own_input(recipe: Recipe) -> None:
    # q and v: one input more of 32 bytes, and two masks of 8.
    plain = bytes_of(recipe, geometry(LLAMA), "method=lora", "lora={rank: 3, targets: [q_proj, v_proj]}")
    lora = ("method=lora", "lora={rank: 3, dropout: 0.1, targets: [q_proj, v_proj]}")
    assert bytes_of(recipe, geometry(LLAMA), *lora) - plain == 2 * T * (32 + 2 * 8)


def test_adapters_under_autocast_copy_inputs_and_their_own_weights(recipe: Recipe) -> None:
    # Norms 72; inputs of q and v 2 * 16; ranks 2 * 3 * 2; attention 64; MLP 96. Adapters: 3 * (8 + 8 + 8 + 4) * 2.
    lora = ("method=lora", "training.precision=bf16", "lora={rank: 3, targets: [q_proj, v_proj]}")
    layer = 72 + 32 + 12 + 64 + 96
    assert bytes_of(recipe, geometry(LLAMA), *lora) == 2 * (T * layer + 168) + T * (36 + 16)


def test_a_layer_with_layer_norms_and_relu_adds_up(recipe: Recipe) -> None:
    # 2 norms: input, mean, deviation: 2 * 40; inputs of q, k, v and of fc1: 64; q, k, v, output, 16: 144; relu 64;
    # 2 dropout masks of 8. Around: a norm 40, the head's input 32, ids 16.
    layer = 80 + 64 + 144 + 64 + 16
    assert bytes_of(recipe, geometry(OPT)) == T * (2 * layer + 40 + 32 + 16)


def test_dora_keeps_the_outputs_that_it_scales(recipe: Recipe) -> None:
    # q: 8 outputs, v: 4; base and update, 4 bytes each.
    plain = bytes_of(recipe, geometry(LLAMA), "method=lora", "lora={rank: 3, targets: [q_proj, v_proj]}")
    dora = bytes_of(recipe, geometry(LLAMA), "method=lora", "lora={rank: 3, dora: true, targets: [q_proj, v_proj]}")
    assert dora - plain == T * 2 * 2 * 4 * (8 + 4)


def test_checkpointing_keeps_inputs_and_one_layer(recipe: Recipe) -> None:
    # 2 inputs of 32 bytes a token, one layer.
    found = bytes_of(recipe, geometry(LLAMA), activation_checkpointing=True)
    assert found == T * (2 * 32 + LLAMA_LAYER + LLAMA_OUTSIDE)
    deep = bytes_of(recipe, geometry(LLAMA, num_hidden_layers=12), activation_checkpointing=True)
    assert deep - found == T * 10 * 32


def test_checkpointing_holds_all_copies_of_weights_or_one_layer(recipe: Recipe) -> None:
    # 100 layers: 100 * 1152 bytes of copies outweigh a layer of T * 408 + 1152. Inputs of 32 bytes a token.
    found = bytes_of(
        recipe, geometry(LLAMA, num_hidden_layers=100), "training.precision=bf16", activation_checkpointing=True
    )
    assert found == T * 100 * 32 + 100 * 1152 + T * 100 + 2 * 256


def test_frozen_layers_under_frozen_embeddings_keep_nothing(recipe: Recipe) -> None:
    one = bytes_of(recipe, geometry(LLAMA), "freeze={embeddings: true, first_layers: 1}")
    assert one == T * (LLAMA_LAYER + LLAMA_OUTSIDE)
    # Gradients of the embeddings pass through frozen layers.
    assert bytes_of(recipe, geometry(LLAMA), "freeze={first_layers: 1}") == T * (2 * LLAMA_LAYER + LLAMA_OUTSIDE)


def test_dropout_keeps_a_byte_an_element_on_cuda_and_a_factor_on_a_cpu(recipe: Recipe) -> None:
    # BERT drops two outputs of H = 8 in a layer, and the embeddings.
    still = geometry(BERT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    shaky = geometry(BERT, attention_probs_dropout_prob=0.0)
    for device, width in (("cuda", 1), ("cpu", 4)):
        difference = [bytes_of(recipe, model, *CLASSIFIER, device=device) for model in (shaky, still)]
        assert difference[0] - difference[1] == T * (2 * 2 + 1) * 8 * width


def test_dropout_of_scores_on_a_cpu_keeps_all_of_them(recipe: Recipe) -> None:
    # No fused kernel: q, k, v 96, three times 4 heads * T scores of 4 bytes, and the output as the input of the
    # next layer 32, instead of 4 * 32 + 16.
    fused, whole = (bytes_of(recipe, geometry(BERT), *CLASSIFIER, device=device) for device in ("cuda", "cpu"))
    masks = T * 5 * 8 * 3  # the CPU's wider dropout masks
    assert whole - fused == 2 * T * (96 + 3 * 4 * 4 * T + 32 - 144) + masks


@pytest.mark.parametrize(
    ("model", "activation", "tensors"),
    [
        # relu's output is the input of the next layer: one tensor; gelu keeps its input too; gelu_new four of its own.
        (OPT, "relu", 1),
        (OPT, "gelu", 2),
        (GPT2, "gelu_new", 5),
        (GPT2, "gelu", 2),
    ],
)
def test_activation_functions_differ_in_what_they_keep(
    recipe: Recipe, model: dict[str, Any], activation: str, tensors: int
) -> None:
    inner = model.get("intermediate_size", 4 * 8)
    one = bytes_of(recipe, geometry(model, activation_function="relu"))
    found = bytes_of(recipe, geometry(model, activation_function=activation))
    assert found - one == 2 * T * (tensors - 1) * inner * 4


def test_logits_take_twelve_bytes_each_at_the_peak(recipe: Recipe) -> None:
    # B * T * V = 2 * 16 * 32 = 1024.
    assert logit_bytes(recipe.config(), geometry(LLAMA), examples_per_microbatch=2) == 12 * 1024
    # A classifier answers once an example: 2 * 3 labels.
    assert logit_bytes(recipe.config(*CLASSIFIER), geometry(BERT), examples_per_microbatch=2) == 12 * 6


def test_lora_in_16_bits_runs_layer_norms_in_fp32_on_cuda(recipe: Recipe) -> None:
    # Two layer norms a layer and the last: 5 inputs of 8 elements, 2 bytes wider on cuda; 2 dropout masks a layer, of
    # 8 elements, a byte narrower.
    lora = ("method=lora", "training.precision=bf16")
    cuda, cpu = (bytes_of(recipe, geometry(OPT), *lora, device=device) for device in ("cuda", "cpu"))
    assert cuda - cpu == T * (5 * 8 * 2 - 4 * 8 * 1)


def test_a_quantised_base_keeps_the_inputs_of_its_linear_layers(recipe: Recipe) -> None:
    # Beside q's and v's, the inputs of the MLP: 32 into gate and up, 64 into down.
    lora = ("method=lora", "lora={rank: 3, targets: [q_proj, v_proj]}")
    plain = bytes_of(recipe, geometry(LLAMA), *lora)
    int8 = bytes_of(recipe, geometry(LLAMA), *lora, "model.quantisation=int8")
    assert int8 - plain == 2 * T * (32 + 64)
