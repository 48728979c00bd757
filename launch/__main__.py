"""The command `retain`. Each command is a few lines: load, decide, execute, show."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from launch import demo as demo_run
from launch.commands import module_argv
from launch.demo_models import DemoModel
from launch.local import execute, run_module
from launch.machine import this_machine
from launch.plan import make_plan
from launch.show import plan_text, print_report
from trainer.config.errors import EXIT_CRASH, EXIT_INPUT, EXIT_INTERRUPTED, OWN_LINE, InputError
from trainer.config.load import load_config
from trainer.config.plan import Plan, read_plan
from trainer.config.run_folder import RunFolder
from trainer.config.schema import RunConfig
from trainer.evaluation.report import read_report

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
    print_report(read_report(Path(value.run_folder)))
    _say(f"report: {value.run_folder}/report.md")


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


@app.command()
def report(run: Run) -> None:
    """The before/after table of a finished run."""
    print_report(read_report(run))
    _say(f"report: {run}/report.md")


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
