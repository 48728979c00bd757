"""The command `retain`. Each command is a few lines: load, decide, execute, show."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from launch import demo as demo_run
from launch.arms import compare_arms
from launch.commands import module_argv
from launch.compare import ModelSettings, compare_sides, read_side
from launch.demo_models import DemoModel
from launch.local import execute, run_module
from launch.machine import this_machine
from launch.plan import make_plan
from launch.show import plan_text, print_arms, print_report
from trainer.config.errors import EXIT_CRASH, EXIT_INPUT, EXIT_INTERRUPTED, OWN_LINE, InputError
from trainer.config.load import load_config
from trainer.config.plan import Plan, read_plan
from trainer.config.run_folder import RunFolder
from trainer.config.schema import RunConfig
from trainer.evaluation.report import ForgettingReport, read_report, write_report
from trainer.evaluation.verdict_rule import exit_code

app = typer.Typer(
    name="retain",
    help="Fine-tune language models on many GPUs without letting them forget, and prove it with numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="YAML configuration.", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as training.num_steps=100.")]
Run = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]
Step = Annotated[int | None, typer.Option(help="Checkpoint of this step; the newest by default.")]


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(message: str) -> None:
    print(f"{OWN_LINE}{message}", file=sys.stderr, flush=True)


def _plan(config: Path, overrides: list[str] | None) -> Plan:
    machine = this_machine()
    variables = {"RETAIN_CACHE": str(machine.cache_folder)}
    return make_plan(load_config(config, overrides=overrides or (), variables=variables), machine=machine)


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Show what would run, why, and with how much memory. Writes nothing."""
    _say(plan_text(_plan(config, overrides)))


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML configuration.", metavar="[CONFIG]")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run from its newest checkpoint.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, start nothing.")] = False,
) -> None:
    """Execute exactly the plan that `retain plan` shows."""
    if (config is None) == (resume is None):
        raise InputError("train: wanted either a CONFIG to start, or --resume RUN to go on with one.")
    value = _plan(config, overrides) if config is not None else _resumable_plan(resume)
    if dry_run:
        _say(plan_text(value))
        return
    for decision in value.decisions:
        _say(f"decision: {decision.field}: {decision.asked} -> {decision.used} ({decision.reason})")
    code = execute(value, resume=resume is not None, notify=_say, complain=_complain)
    if code == 0:
        _finish(value)
    raise typer.Exit(code)


def _resumable_plan(run: Path | None) -> Plan:
    assert run is not None
    folder = RunFolder(run.absolute())
    value = read_plan(folder.plan)
    steps = folder.complete_checkpoints()
    if steps and steps[-1] == value.config.training.num_steps and (folder.path / "report.json").exists():
        raise InputError(f"{run}: this run is finished (step {steps[-1]}). See: retain report {run}")
    if not steps:
        _say(f"{run}: no complete checkpoint: starting from step 0")
    if folder.path != Path(value.run_folder):
        raise InputError(f"{run}: the run folder was moved from {value.run_folder}. Move it back to resume it.")
    return value


def _finish(value: Plan) -> None:
    if value.config.evaluation.when == "later":
        return
    if value.config.evaluation.recovery is not None:
        _run_module("trainer.recover", Path(value.run_folder), [value.run_folder])
    print_report(read_report(Path(value.run_folder)))
    _say(f"report: {value.run_folder}/report.html")


@app.command()
def demo(
    model: Annotated[
        DemoModel, typer.Option(help="glassllm-en: seconds a step. smollm2: 135M parameters.")
    ] = "glassllm-en",
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Make model and data, train nothing.")] = False,
    run_folder: Annotated[str | None, typer.Option(help="Run folder; a new one under runs/ by default.")] = None,
) -> None:
    """The main job on embedded real weights and data: multitask tuning on two ZeRO ranks, and what was forgotten."""
    machine = this_machine()
    config = demo_run.prepare_demo(model, machine=machine, notify=_say)
    if prepare_only:
        return
    folder = run_folder or demo_run.new_run_folder()
    value = _plan(config, [f"run.folder={json.dumps(folder)}"])
    code = execute(value, resume=False, notify=_say, complain=_complain)
    if code == 0:
        _finish(value)
        _say(demo_run.next_commands(folder, demo_run.PROMPTS[model]))
    raise typer.Exit(code)


@app.command()
def data(
    config: Config,
    overrides: Overrides = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples to show of each task.")] = 1,
    html: Annotated[Path | None, typer.Option(help="Write the same page, with plots, to this file.")] = None,
) -> None:
    """Show what the model will really see: tasks, lengths, the mixture over time, examples. Trains nothing."""
    value = _plan(config, overrides)
    folder = Path(tempfile.mkdtemp(prefix="retain-data-"))
    RunFolder(folder).plan.write_text(value.to_json(), encoding="utf-8")
    options = [] if html is None else ["--html", str(html.absolute())]
    argv = module_argv("trainer.inspection", str(folder), "--examples", str(examples), *options)
    code = run_module(argv, value.environment, complain=_complain)
    if code != EXIT_CRASH:  # its message names the log in there
        shutil.rmtree(folder)
    raise typer.Exit(code)


Gate = Annotated[bool, typer.Option("--gate", help="Exit 0: non-inferior, 3: regressed, 4: inconclusive.")]


@app.command()
def report(run: Run, gate: Gate = False) -> None:
    """The before/after table and the verdicts of a finished run."""
    value = read_report(run)
    print_report(value)
    _say(f"report: {run}/report.html")
    _leave_by(value, gate=gate)


def _leave_by(value: ForgettingReport, *, gate: bool) -> None:
    if not gate:
        return
    if value.verdict is None:
        raise InputError("--gate: no base ability was measured, so nothing is known. Give evaluation.suite.")
    raise typer.Exit(exit_code(value.verdict))


@app.command()
def evaluate(run: Run, step: Step = None, gate: Gate = False) -> None:
    """Measure a checkpoint of a run with its whole suite, in one process, and make the report."""
    code = _run_module("trainer.evaluate", run, [str(run), *([] if step is None else ["--step", str(step)])])
    if code:
        raise typer.Exit(code)
    report(run, gate=gate)


@app.command()
def recover(run: Run) -> None:
    """Ask of each REGRESSED ability whether a few steps on a copy bring it back, and put the answer in the report."""
    raise typer.Exit(_run_module("trainer.recover", run, [str(run)]))


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="A run, RUN@STEP, a model, records, or lm-eval samples.")],
    after: Annotated[str, typer.Argument(help="Measured on the same examples.")],
    suite: Annotated[Path | None, typer.Option(help="YAML suite that models are measured with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write report.json, .md and .html into this folder.")] = None,
    margin: Annotated[float | None, typer.Option(min=0.0, help="Largest loss that does not matter, for all.")] = None,
    metric: Annotated[str | None, typer.Option(help="Of lm-eval samples that hold several.")] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="Of lm-eval samples that hold several.")] = None,
    max_examples: Annotated[int, typer.Option(min=2, help="Of each task, for models.")] = 300,
    sequence_length_tokens: Annotated[int, typer.Option(min=2, help="Longest example, for models.")] = 1024,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16, for models.")] = "fp32",
    gate: Gate = False,
) -> None:
    """What the second can no longer do that the first could: paired, example by example.

    Several runs with commas between them (a1,a2,a3 b1,b2,b3) are arms: two ways to train, each with several seeds.
    """
    machine = this_machine()
    if "," in before or "," in after:
        if any((suite, out, margin, metric, filter_name, gate)):
            raise InputError("compare: arms (runs with commas between them) take no options. Remove them.")
        arms = [[Path(one) for one in given.split(",")] for given in (before, after)]
        print_arms(compare_arms(*arms, machine=machine, notify=_say))
        return
    if precision not in ("fp32", "bf16", "fp16"):
        raise InputError(f"--precision: found {precision!r}, wanted fp32, bf16 or fp16.")
    settings = ModelSettings(
        suite=suite,
        max_examples=max_examples,
        sequence_length_tokens=sequence_length_tokens,
        precision=precision,
        device="cuda" if machine.num_gpus else "cpu",
    )
    sides = [
        read_side(given, machine=machine, settings=settings, metric=metric, filter_name=filter_name)
        for given in (before, after)
    ]
    value = compare_sides(*sides, margin=margin, notify=_say)
    print_report(value, title=f"{before} and {after}")
    if out is not None:
        write_report(out / "report.json", value)
        if code := run_module(module_argv("trainer.render", str(out)), {}, complain=_complain):
            raise typer.Exit(code)
        _say(f"report: {out}/report.html")
    _leave_by(value, gate=gate)


@app.command()
def export(
    run: Run,
    target: Annotated[Path, typer.Argument(help="New folder.", metavar="DIR")],
    step: Step = None,
    merge: Annotated[bool, typer.Option(help="Merge a LoRA adapter into the base.")] = True,
) -> None:
    """Write a trained run as a folder that plain transformers (or peft) loads."""
    options = ([] if merge else ["--no-merge"]) + ([] if step is None else ["--step", str(step)])
    raise typer.Exit(_run_module("trainer.export", run, [str(run), str(target), *options]))


@app.command()
def generate(
    run: Run,
    prompt: Annotated[str, typer.Argument(help="Encoded exactly as in training.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    step: Step = None,
) -> None:
    """Ask a trained run."""
    options = ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature), "--seed", str(seed)]
    options += [] if step is None else ["--step", str(step)]
    raise typer.Exit(_run_module("trainer.generate", run, [*options, "--", str(run), prompt]))


def _run_module(module: str, run: Path, arguments: list[str]) -> int:
    environment = read_plan(RunFolder(run).plan).environment
    return run_module(module_argv(module, *arguments), environment, complain=_complain)


@app.command()
def schema() -> None:
    """JSON Schema of the configuration, for editors."""
    _say(json.dumps(RunConfig.model_json_schema(), indent=2))


def main() -> None:
    """Entry point: a wrong input is one clear line and exit code 2."""
    try:
        app()
    except InputError as error:
        _complain(str(error))
        sys.exit(EXIT_INPUT)
    except KeyboardInterrupt:
        _complain("interrupted before anything was started.")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
