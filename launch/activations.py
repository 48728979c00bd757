"""Bytes that a forward pass keeps for the backward pass, from the geometry of a model alone. No torch.

A derivation of the kind of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), but of what transformers 5.23 and
torch 2.13 really save; tests/system/test_activation_bytes.py measures it. Everything is counted for the longest
sequences, and as if every gradient flowed to the embeddings: the first layer saves a little less.

Letters in comments: B examples, T tokens, H hidden size, F inside the MLP, Q queries, V vocabulary.
"""

from dataclasses import dataclass

from launch.model_facts import Family, Geometry
from trainer.config.plan import Device
from trainer.config.schema import LoraSection, RunConfig, Strategy

LOGIT_BYTES = 12
"""Bytes of an element of BTV at the peak of trainer.loss. fp32: logits, the supervised rows and their log-softmax;
in 16 bits the same after the cast. Then, in the backward pass: log-softmax, its gradient, and that of the rows."""

_LINEARS: dict[Family, tuple[tuple[str, ...], ...]] = {
    "llama": (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
    "gpt2": (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
    "opt": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.out_proj",), ("fc1",), ("fc2",)),
    "bert": (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        ("attention.output.dense",),
        ("intermediate.dense",),
        ("output.dense",),
    ),
    "distilbert": (
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        ("attention.out_lin",),
        ("ffn.lin1",),
        ("ffn.lin2",),
    ),
}
"""Linear layers of a block in four groups that read the same tensor: into and out of attention, into and out of the
MLP."""

_POST_NORM: tuple[Family, ...] = ("bert", "distilbert")
_DROPOUT_SITES: dict[Family, int] = {"llama": 0, "gpt2": 2, "opt": 2, "bert": 2, "distilbert": 1}
_ACTIVATION_TENSORS = {"gelu_new": 4, "gelu_fast": 4, "quick_gelu": 2}
"""Tensors of F that an activation written in python saves; one of torch's own saves its input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One forward pass of a micro-batch: its shape, and the bytes of an element of each kind of tensor."""

    geometry: Geometry
    lora: LoraSection | None
    quantised: bool
    attention: str
    tokens: int
    padded: bool
    """Rows differ in length: attention gets a mask."""

    on_cpu: bool
    autocast: bool
    """Linear layers cast their inputs, and each keeps a copy of its own."""

    linear: int
    """What linear layers and attention give."""

    stream: int
    """Sums of the residual stream, the input of layer norms."""

    normed: int
    """The normalised value of an RMS norm, kept for the gradient of its weight."""

    weights_cast: bool
    """Weights are fp32 under autocast: 16-bit copies live from forward to backward."""

    def adapts(self, module: str) -> bool:
        """The module keeps its input: it is trained, or an adapter beside it is."""
        if self.lora is None or is_named(module, self.lora.train_in_full):
            return True
        if self.lora.targets == "all-linear":
            return module != "lm_head"
        return is_named(module, self.lora.targets)


def is_named(module: str, names: tuple[str, ...]) -> bool:
    """One of `names` is the module's path, or its end after a dot, as peft matches them."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def logit_bytes(config: RunConfig, geometry: Geometry, *, examples_per_microbatch: int) -> int:
    """Logits, loss and their gradients at their peak, every position supervised; a classifier has one an example."""
    if config.labels:
        return LOGIT_BYTES * examples_per_microbatch * len(config.labels)
    tokens = examples_per_microbatch * config.data.sequence_length_tokens
    return LOGIT_BYTES * tokens * geometry.vocab_size


def activation_bytes(
    config: RunConfig,
    geometry: Geometry,
    *,
    strategy: Strategy,
    examples_per_microbatch: int,
    activation_checkpointing: bool,
    device: Device,
) -> int:
    """What autograd keeps from forward to backward, the logits apart.

    With checkpointing: the input of each layer, and one layer in full while it is recomputed. The 16-bit copies of
    autocast are then all alive at the end of the forward pass, when no layer is: the larger of the two counts.
    """
    step = _forward_pass(
        config, geometry, strategy=strategy, examples_per_microbatch=examples_per_microbatch, device=device
    )
    tokens = examples_per_microbatch * config.data.sequence_length_tokens
    layer = tokens * _layer_bytes_per_token(step)
    copies, head_copies = _weight_copies(step, is_causal=not config.labels)
    outside = tokens * _outside_bytes_per_token(step, is_causal=not config.labels) + head_copies
    if not activation_checkpointing:
        return _num_layers_with_gradients(config, geometry) * (layer + copies) + outside
    mask = tokens * step.tokens if step.padded else 0  # bool (B, 1, T, T), an argument of every layer
    inputs = geometry.num_layers * tokens * geometry.hidden_size * _residual_bytes(step) + mask
    return inputs + max(layer + copies, geometry.num_layers * copies) + outside


def _num_layers_with_gradients(config: RunConfig, geometry: Geometry) -> int:
    """Frozen layers keep nothing where no gradient goes below them."""
    frozen = config.freeze.first_layers if config.freeze and config.freeze.embeddings else 0
    return max(0, geometry.num_layers - frozen)


def _forward_pass(
    config: RunConfig, geometry: Geometry, *, strategy: Strategy, examples_per_microbatch: int, device: Device
) -> _Pass:
    """Widths. ZeRO holds the model itself in 16 bits; elsewhere autocast does, over fp32 weights or a 16-bit base."""
    half = config.training.precision != "fp32"
    zero = strategy.startswith("zero")
    on_cpu = device == "cpu"
    lora = config.lora_or_default if config.method == "lora" else None
    quantised = config.model.quantisation != "none"
    narrow_base = half and not zero and lora is not None and not quantised
    # autocast on cuda runs layer norms in fp32, on a CPU it leaves them as they are
    stream = 2 if half and (zero or (narrow_base and on_cpu)) else 4
    return _Pass(
        geometry=geometry,
        lora=lora,
        quantised=quantised,
        attention=config.model.attention,
        tokens=config.data.sequence_length_tokens,
        padded=examples_per_microbatch > 1 or config.data.padding == "sequence_length" or config.data.packing,
        on_cpu=on_cpu,
        autocast=half and not zero,
        # on cuda LLM.int8 answers in the width of its input, which is that of the fp32 norms
        linear=2 if half and (on_cpu or not quantised) else 4,
        stream=stream,
        normed=2 if half and (zero or narrow_base) and geometry.model_type != "gemma" else 4,
        weights_cast=half and not zero and not narrow_base,
    )


def _layer_bytes_per_token(step: _Pass) -> int:
    """One transformer layer: two norms, attention, MLP, dropout."""
    g = step.geometry
    into_attention, out_of_attention, into_mlp, out_of_mlp = _LINEARS[g.family]
    total = 2 * _norm_bytes(step, g.hidden_size) + _attention_bytes(step)
    if g.model_type == "qwen3":
        total += _norm_bytes(step, g.attention_width) + _norm_bytes(step, g.kv_width)
    total += _input_bytes(step, into_attention, g.hidden_size, is_wide=True)
    total += _input_bytes(step, out_of_attention, g.attention_width, is_kept=not _scores_are_kept(step))
    total += _input_bytes(step, into_mlp, g.hidden_size, is_wide=True) + _activation_function_bytes(step)
    total += _input_bytes(step, out_of_mlp, g.intermediate_size, is_kept=g.activation == "relu")
    dropout = _DROPOUT_SITES[g.family] * g.hidden_size * _dropout_mask(step) if g.dropout else 0
    return total + dropout + _dora_bytes(step)


def _outside_bytes_per_token(step: _Pass, *, is_causal: bool) -> int:
    """Norm and dropout around the layers, the input of the head, and two ids."""
    g = step.geometry
    has_dropout = g.dropout and g.family in ("gpt2", "bert", "distilbert")
    has_input = g.family not in _POST_NORM and (not is_causal or step.adapts("lm_head"))
    dropout = g.hidden_size * (step.stream if step.on_cpu else 1) if has_dropout else 0
    head = g.embedding_size * (2 if step.autocast else step.linear) if has_input else 0
    return _norm_bytes(step, g.hidden_size) + dropout + head + 16


def _norm_bytes(step: _Pass, width: int) -> int:
    """RMS norms compute in fp32 and keep input, 1 / RMS and, if trained, the normalised value; layer norms the input,
    mean and deviation."""
    if step.geometry.family != "llama":
        return step.stream * width + 8
    return 4 * width + 4 + (step.normed * width if step.lora is None else 0)


def _input_bytes(
    step: _Pass, modules: tuple[str, ...], width: int, *, is_wide: bool = False, is_kept: bool = False
) -> int:
    """Inputs of the linear layers of a group.

    Args:
        is_wide: it comes from a norm, which under autocast gives fp32.
        is_kept: something else saves the same tensor.
    """
    readers = sum(step.adapts(module) for module in modules)
    quantised = 0 if is_kept or not step.quantised else width * 4
    if step.lora is None:
        if is_wide and step.autocast:
            return 2 * width * readers
        return 0 if is_kept or not readers else step.linear * width
    ranks = readers * step.lora.rank * (2 if step.autocast else step.linear)
    if step.autocast:  # peft widens the input to the fp32 of the adapter, autocast narrows it again
        own = 2 * width * readers
    elif step.lora.dropout:
        own = step.linear * width * readers
    else:
        own = 0 if is_kept or step.quantised or not readers else step.linear * width
    mask = readers * width * (4 if step.on_cpu and step.autocast else _dropout_mask(step)) if step.lora.dropout else 0
    return own + ranks + quantised + mask


def _dora_bytes(step: _Pass) -> int:
    """Outputs of the base and of the update, each scaled by a learnt magnitude."""
    if step.lora is None or not step.lora.dora:
        return 0
    return 2 * step.linear * sum(output for _, output in _adapted_sides(step))


def _scores_are_kept(step: _Pass) -> bool:
    """T scores a head and token: in eager attention, and on a CPU, whose fused kernel knows no dropout."""
    on_cpu = step.on_cpu and step.attention == "sdpa" and step.geometry.attention_dropout > 0
    return step.attention == "eager" or on_cpu


def _attention_bytes(step: _Pass) -> int:
    """Queries, keys and values; then the output and the log-sum-exp of a fused kernel, or all scores."""
    g = step.geometry
    scores = g.num_heads * step.tokens
    if not _scores_are_kept(step):
        masked = step.padded and step.attention == "sdpa"
        kv_width = g.attention_width if masked else g.kv_width  # a mask makes transformers repeat shared heads
        mask = step.linear * step.tokens if masked else 0  # (B, 1, T, T), turned into numbers in each layer
        return step.linear * 2 * (g.attention_width + kv_width) + 4 * g.num_heads + mask
    if step.attention == "sdpa":  # scores, mask and product of dropout, all in fp32
        return 3 * 4 * (g.attention_width + scores)
    softmax = step.linear if not step.autocast and g.family in ("gpt2", *_POST_NORM) else 4
    operand = step.linear if g.attention_dropout or softmax != step.linear else 0
    mask = (softmax if step.on_cpu and g.family in _POST_NORM else _dropout_mask(step)) if g.attention_dropout else 0
    return step.linear * 3 * g.attention_width + (softmax + operand + mask) * scores


def _activation_function_bytes(step: _Pass) -> int:
    """gate, act(gate) and up of a gated MLP; elsewhere what the activation saves."""
    g = step.geometry
    tensors = _ACTIVATION_TENSORS.get(g.activation, 1) + (2 if g.gated_mlp else 0)
    return step.linear * tensors * g.intermediate_size


def _dropout_mask(step: _Pass) -> int:
    """Bytes of an element: cuda keeps a bool, a CPU a factor."""
    return step.linear if step.on_cpu else 1


def _residual_bytes(step: _Pass) -> int:
    """Width of a layer's input. After the fp32 layer norm of cuda's autocast it is 4 in post-norm models only."""
    if step.linear == 4:
        return 4
    return step.stream if step.weights_cast or step.geometry.family in _POST_NORM else 2


def _weight_copies(step: _Pass, *, is_causal: bool) -> tuple[int, int]:
    """16-bit copies that autocast makes: of one layer's matrices, and of the output head."""
    g = step.geometry
    attention = 2 * g.hidden_size * (g.attention_width + g.kv_width)
    matrices = attention + (3 if g.gated_mlp else 2) * g.hidden_size * g.intermediate_size
    head = g.embedding_size * g.vocab_size if is_causal else 0
    if step.lora is None:
        return (2 * matrices, 2 * head) if step.weights_cast else (0, 0)
    sides = sum(inputs + outputs for inputs, outputs in _adapted_sides(step))
    return 2 * step.lora.rank * sides if step.autocast else 0, 2 * head if step.weights_cast else 0


def _adapted_sides(step: _Pass) -> list[tuple[int, int]]:
    """(inputs, outputs) of each adapted layer of a block."""
    g = step.geometry
    qkv = [g.attention_width, g.kv_width, g.kv_width]
    outputs = [
        [sum(qkv)] if g.family == "gpt2" else qkv,
        [g.hidden_size],
        [g.intermediate_size] * (2 if g.gated_mlp else 1),
        [g.hidden_size],
    ]
    inputs = (g.hidden_size, g.attention_width, g.hidden_size, g.intermediate_size)
    return [
        (width, output)
        for modules, width, group in zip(_LINEARS[g.family], inputs, outputs, strict=True)
        for module, output in zip(modules, group, strict=True)
        if step.adapts(module)
    ]
