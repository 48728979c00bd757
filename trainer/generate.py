"""Ask a trained run: `python -m trainer.generate RUN "prompt"`. One process, greedy or sampled."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.config.errors import InputError
from trainer.config.plan import read_plan
from trainer.config.run_folder import RunFolder
from trainer.data.tokenize import PromptEncoder, load_tokenizer
from trainer.model import load_trained
from trainer.program import run_program, weights_folder


def generate(
    run_path: Path, prompt: str, *, step: int | None, max_new_tokens: int, temperature: float, seed: int
) -> str:
    """The model's continuation of a prompt, or a classifier's label of it, encoded exactly as in training.

    Raises:
        InputError: no checkpoint, or the prompt leaves no room in the model's context.
    """
    folder = RunFolder(run_path)
    plan = read_plan(folder.plan)
    encoder = PromptEncoder(load_tokenizer(plan.model_folder), labels=plan.config.labels)
    weights = weights_folder(folder, step)
    model = load_trained(plan, weights, merge=True).to(plan.device).eval()
    if plan.config.labels:
        return _label(model, encoder, prompt)
    prompt_ids = encoder.prompt_ids(prompt, chat_template=plan.config.data.chat_template)
    context = model.config.max_position_embeddings
    room = context - len(prompt_ids)
    if room <= 0 or not prompt_ids:
        raise InputError(f"the prompt has {len(prompt_ids)} tokens; wanted 1 to {context - 1} (the model's context).")
    torch.manual_seed(seed)
    input_ids_BT = torch.tensor([prompt_ids], device=plan.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    output_BT = model.generate(
        input_ids=input_ids_BT,
        attention_mask=torch.ones_like(input_ids_BT),
        max_new_tokens=min(max_new_tokens, room),
        pad_token_id=encoder.pad_token_id,
        eos_token_id=encoder.tokenizer.eos_token_id,
        **sampling,
    )
    return encoder.decode(output_BT[0, len(prompt_ids) :].tolist())


def _label(model: Any, encoder: PromptEncoder, text: str) -> str:
    """`positive 0.93`: the most likely label and its probability."""
    input_ids_BT = torch.tensor([encoder.whole_ids(text)], device=model.device)
    with torch.no_grad():
        probabilities_V = model(input_ids=input_ids_BT).logits[0].softmax(dim=-1)
    best = int(probabilities_V.argmax())
    return f"{encoder.labels[best]} {float(probabilities_V[best]):.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of generation."""
    parser = argparse.ArgumentParser(prog="retain generate", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--step", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return run_program(
        options.run,
        "generate",
        lambda _: generate(
            options.run,
            options.prompt,
            step=options.step,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
