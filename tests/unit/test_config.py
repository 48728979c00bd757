"""A configuration file becomes a frozen RunConfig, or one line for each mistake that says where and what to do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from trainer.config.errors import ConfigError
from trainer.config.load import load_config, to_yaml
from trainer.config.schema import RunConfig

# Line numbers below count from this text.
COMPLETE = """\
run: {folder: runs/x}
model: {path: m}
method: lora
lora:
  rank: 8
data:
  sequence_length_tokens: 16
  tasks:
    ner: {train: a, heldout: b, prompt: "{{ x }}", response: r}
training:
  num_steps: 4
  examples_per_step: 8
  learning_rate: 1e-4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: so that messages show short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, text: str = COMPLETE, *overrides: str, **variables: str) -> RunConfig:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return load_config("c.yaml", overrides=overrides, variables=variables)


def complaint(folder: Path, text: str = COMPLETE, *overrides: str, **variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides, **variables)
    return str(caught.value)


def test_a_complete_file_gives_its_values_and_the_defaults_of_the_rest(folder: Path) -> None:
    config = load(folder)
    assert (config.run.folder, config.run.seed) == ("runs/x", 17)
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha) == (8, 32.0)
    assert config.layout.strategy == "auto"


def test_a_child_overrides_single_keys_of_its_parents_and_keeps_the_others(folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "shared" / "bottom.yaml").write_text(COMPLETE)
    (folder / "shared" / "middle.yaml").write_text("extends: bottom.yaml\nlora: {alpha: 4.0}\nrun: {seed: 3}\n")
    config = load(folder, "extends: shared/middle.yaml\nrun: {seed: 5}\n")
    assert config.lora is not None
    assert (config.run.seed, config.run.folder, config.lora.rank, config.lora.alpha) == (5, "runs/x", 8, 4.0)


def test_a_mistake_in_a_parent_is_told_with_the_parents_line(folder: Path) -> None:
    (folder / "parent.yaml").write_text(COMPLETE.replace("rank: 8", "rank: 0"))
    message = complaint(folder, "extends: parent.yaml\nrun: {seed: 5}\n")
    assert message.startswith("parent.yaml:5: lora.rank: found 0, wanted greater than 0.")


def test_a_child_repairs_a_mistake_of_its_parent(folder: Path) -> None:
    (folder / "parent.yaml").write_text(COMPLETE.replace("rank: 8", "rank: 0"))
    assert load(folder, "extends: parent.yaml\nlora: {rank: 2}\n").lora_or_default.rank == 2


def test_a_circle_of_extends_is_told_with_its_path(folder: Path) -> None:
    (folder / "other.yaml").write_text("extends: c.yaml\n")
    message = complaint(folder, "extends: other.yaml\n")
    assert "`extends` goes in a circle" in message
    assert f"{folder}/c.yaml -> {folder}/other.yaml -> {folder}/c.yaml" in message


def test_extends_must_be_a_path(folder: Path) -> None:
    assert complaint(folder, COMPLETE + "extends: 3\n") == (
        "c.yaml:14: extends: found 3, wanted a path beside this file."
    )


def test_a_parent_that_is_missing_is_named(folder: Path) -> None:
    assert "gone.yaml: cannot be read (No such file or directory)" in complaint(folder, "extends: gone.yaml\n")


def test_a_parent_that_is_missing_is_told_with_the_line_that_extends_it(folder: Path) -> None:
    assert "c.yaml:1" in complaint(folder, "extends: gone.yaml\n")


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(folder: Path) -> None:
    config = load(folder, COMPLETE, "run.seed=1", "run.seed=2", "training.precision=bf16")
    assert (config.run.seed, config.training.precision) == (2, "bf16")


def test_an_override_reaches_into_one_task(folder: Path) -> None:
    config = load(folder, COMPLETE, "data.tasks.ner.weight=0.5", "data.tasks.ner.score={kind: generate}")
    task = config.data.tasks["ner"]
    assert task.score is not None
    assert (task.weight, task.score.kind, task.train) == (0.5, "generate", "a")


def test_an_override_creates_a_section_that_the_file_does_not_have(folder: Path) -> None:
    assert load(folder, COMPLETE, "layout.processes=2").layout.processes == 2


def test_the_value_of_an_override_may_hold_an_equals_sign(folder: Path) -> None:
    assert load(folder, COMPLETE, "data.tasks.ner.prompt=a=b").data.tasks["ner"].prompt == "a=b"


def test_variables_are_replaced_in_every_string_and_in_overrides(folder: Path) -> None:
    config = load(folder, COMPLETE.replace("path: m", "path: '${A}/m'"), "run.folder=${B}/${A}", A="/a", B="/b")
    assert (config.model.path, config.run.folder) == ("/a/m", "/b//a")


def test_an_unknown_variable_is_told_with_its_line_and_the_known_ones(folder: Path) -> None:
    message = complaint(folder, COMPLETE.replace("path: m", "path: '${HOMME}/m'"), RETAIN_CACHE="/c")
    assert message == "c.yaml:2: model.path: unknown variable ${HOMME}. Known: RETAIN_CACHE."


@pytest.mark.parametrize(
    ("text", "rate"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("1", 1.0), (".5", 0.5), ("2.", 2.0), ("+1e+1", 10.0)]
)
def test_numbers_are_read_as_a_person_means_them(folder: Path, text: str, rate: float) -> None:
    assert load(folder, COMPLETE.replace("1e-4", text)).training.learning_rate == rate


@pytest.mark.parametrize("word", ["no", "on", "Yes", "off", "n", "2024-01-31", "e5", "1.2.3"])
def test_words_of_yaml_1_1_stay_words(folder: Path, word: str) -> None:
    assert load(folder, COMPLETE, f"run.folder={word}").run.folder == word


def test_integers_are_decimal_as_in_yaml_1_2(folder: Path) -> None:
    assert load(folder, COMPLETE, "run.seed=010").run.seed == 10
    assert load(folder, COMPLETE, "run.folder=1:30").run.folder == "1:30"


def test_true_is_a_boolean_and_not_a_number(folder: Path) -> None:
    assert load(folder, COMPLETE, "data.chat_template=true").data.chat_template is True
    assert "run.seed: found True, wanted a valid integer." in complaint(folder, COMPLETE, "run.seed=true")


def test_a_key_given_twice_is_told_with_both_lines(folder: Path) -> None:
    message = complaint(folder, COMPLETE.replace("  num_steps: 4\n", "  num_steps: 4\n  num_steps: 5\n"))
    assert message == "c.yaml:12: training.num_steps: given twice (also at c.yaml:11). Keep one."


# Each mistake in the file, and the start of its one line.
MISTAKES = [
    ("  rank: 8", "  ranks: 8", "c.yaml:5: lora.ranks: unknown key. Did you mean lora.rank? Keys here: alpha,"),
    ("  rank: 8", "  rank: [1]", "c.yaml:5: lora.rank: found 'list', wanted a valid integer. (Rank of the update;"),
    ("  rank: 8", "  dropout: 2.0", "c.yaml:5: lora.dropout: found 2.0, wanted less than or equal to 1. (Dropout"),
    ("method: lora", "method: adapter", "c.yaml:3: method: found 'adapter', wanted one of full, lora. (full: every"),
    ("method: lora", "method: full", "c.yaml: configuration: a `lora` section is given but method is 'full': set"),
    ("num_steps: 4", "num_steps: no", "c.yaml:11: training.num_steps: found 'no', wanted a valid integer. (Optimizer"),
    ("num_steps: 4", "num_steps: 4.0", "c.yaml:11: training.num_steps: found 4.0, wanted a valid integer."),
    ("num_steps: 4", "num_steps: '4'", "c.yaml:11: training.num_steps: found '4', wanted a valid integer."),
    ("  num_steps: 4\n", "", "c.yaml:10: training.num_steps: missing. (Optimizer steps of the whole run.)"),
    ("1e-4", ".nan", "c.yaml:13: training.learning_rate: found nan, wanted a finite number."),
    ("    ner:", "    Ner A:", "c.yaml:9: data.tasks.Ner A: found 'Ner A', wanted a name of lower-case letters,"),
    ("    ner: {", "    ner: {wieght: 2, ", "c.yaml:9: data.tasks.ner.wieght: unknown key. Did you mean data.tasks"),
    ("response: r", "response: r, score: {kind: choice}", "c.yaml:9: data.tasks.ner.score: kind: choice needs at"),
    ("model: {path: m}", "model: m", "c.yaml:2: model: found 'm', wanted a mapping of keys."),
    ("model: {path: m}\n", "", "c.yaml: model: missing."),
    ("training:", "trainings:", "c.yaml: training: missing."),
]


@pytest.mark.parametrize(("right", "wrong", "start"), MISTAKES)
def test_a_mistake_is_told_with_place_key_found_and_wanted(folder: Path, right: str, wrong: str, start: str) -> None:
    assert right in COMPLETE
    assert complaint(folder, COMPLETE.replace(right, wrong)).startswith(start)


OVERRIDE_MISTAKES = [
    (
        "lora.ranks=3",
        "lora.ranks: unknown key. Did you mean lora.rank? "
        "Keys here: alpha, dora, dropout, rank, rank_stabilised, targets, train_in_full.",
    ),
    ("trainning.num_steps=3", "trainning.num_steps: unknown key. Did you mean training.num_steps?"),
    ("data.tasks.ner.promt=x", "data.tasks.ner.promt: unknown key. Did you mean data.tasks.ner.prompt?"),
    ("model.path.x=3", "model.path.x: unknown key."),
    ("layout.processes=many", "layout.processes: found 'many', wanted a valid integer (or auto). (Ranks,"),
    ("run.seed", "wanted key=value, for example training.num_steps=100."),
    ("=3", "wanted key=value, for example training.num_steps=100."),
    ("run.seed=[", "the value is not YAML. Quote it if it holds special characters."),
]


@pytest.mark.parametrize(("override", "rest"), OVERRIDE_MISTAKES)
def test_a_mistake_in_an_override_names_the_override(folder: Path, override: str, rest: str) -> None:
    assert complaint(folder, COMPLETE, override).startswith(f"override {override!r}: {rest}")


def test_a_key_without_its_section_is_found_in_the_section_that_has_it(folder: Path) -> None:
    assert "Did you mean lora.rank?" in complaint(folder, COMPLETE, "rank=3")


def test_a_wrong_entry_of_a_list_is_not_answered_with_only_the_word_beside_the_list(folder: Path) -> None:
    assert "wanted one of all-linear." not in complaint(folder, COMPLETE, "lora.targets=[q_proj, 3]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: the file is empty; wanted a YAML mapping with `run`, `model`, `data`, ..."),
        ("# nothing yet\n", "c.yaml: the file is empty; wanted a YAML mapping with `run`, `model`, `data`, ..."),
        ("- a\n- b\n", "c.yaml:1: found a sequence, wanted a mapping `key: value`."),
        ("\nhello\n", "c.yaml:2: found a scalar, wanted a mapping `key: value`."),
        ("run: a\nmodel: b: c\n", "c.yaml:2: malformed YAML: mapping values are not allowed here. Check indentation"),
        ("run:\n\tfolder: a\n", "c.yaml:2: malformed YAML: found character '\\t'"),
        ("run: 1\n---\nrun: 2\n", "c.yaml:2: malformed YAML: but found another document."),
        ("run: \x07\n", "c.yaml: malformed YAML:"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(folder: Path, text: str, message: str) -> None:
    found = complaint(folder, text)
    assert found.startswith(message)
    assert "\n" not in found


def test_a_mapping_that_contains_itself_is_refused(folder: Path) -> None:
    assert complaint(folder, "run: &run\n  folder: *run\n").startswith("c.yaml:")


def test_a_file_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read \(it is not UTF-8 text\)"):
        load_config("c.yaml")


def test_several_mistakes_give_one_line_each(folder: Path) -> None:
    wrong = COMPLETE.replace("rank: 8", "ranks: 8").replace("num_steps: 4", "num_steps: 0").replace("{path: m}", "{}")
    lines = complaint(folder, wrong).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["c.yaml:2", "model.path"],
        ["c.yaml:5", "lora.ranks"],
        ["c.yaml:11", "training.num_steps"],
    ]


def test_a_configuration_cannot_be_changed(folder: Path) -> None:
    config = load(folder)
    with pytest.raises(ValidationError, match="frozen"):
        config.training.num_steps = 5  # type: ignore[misc]  # that is the point


def sections(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield root
    for field in root.model_fields.values():
        yield from (inner for model in models_in(field.annotation) for inner in sections(model))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


SECTIONS = sorted(set(sections(RunConfig)), key=lambda section: section.__name__)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_of_a_section_says_what_it_is(section: type[BaseModel]) -> None:
    """By its own text, or, where the field is a section, by that section's."""
    silent = [
        name
        for name, field in section.model_fields.items()
        if not field.description and not any(model.__doc__ for model in models_in(field.annotation))
    ]
    assert silent == []


def test_the_json_schema_is_plain_json_whose_references_all_resolve() -> None:
    schema = json.loads(json.dumps(RunConfig.model_json_schema()))
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"run", "model", "data", "training"}
    references = {part.split('"')[0] for part in json.dumps(schema).split('"$ref": "#/$defs/')[1:]}
    assert references == set(schema["$defs"])
    assert all(definition["additionalProperties"] is False for definition in schema["$defs"].values())


def test_the_resolved_copy_is_read_back_to_an_equal_value(folder: Path) -> None:
    config = load(folder, COMPLETE, "training.learning_rate=1e-5", "run.folder='1e5'", "lora.targets=[q_proj]")
    (folder / "copy.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(folder / "copy.yaml") == config
