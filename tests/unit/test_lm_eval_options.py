"""Which filter and which metric of lm-evaluation-harness's files is read: of one task, and of a folder of several."""

from pathlib import Path

import pytest

from tests.unit.test_lm_eval_files import BEFORE, SAMPLES, changed, put, read_sample_file
from trainer.config.errors import DataError
from trainer.evaluation.lm_eval_files import read_lm_eval


def test_a_filter_and_a_metric_must_be_chosen_where_there_are_several(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"several filters, .* Add --filter, of capital, first-word\."):
        read_sample_file(BEFORE["next_word"])
    with pytest.raises(
        DataError, match=r"no filter 'strict'\. Choose another --filter; of next_word: capital, first-w"
    ):
        read_sample_file(BEFORE["next_word"], filter_name="strict")
    with pytest.raises(DataError, match=r"no metric 'f1'\. Choose another --metric; of endings: acc, acc_norm\."):
        read_sample_file(BEFORE["endings"], metric="f1")
    unusual = put(metrics=["acc_norm", "acc_bytes"], acc_bytes=1.0)
    with pytest.raises(DataError, match=r"several metrics, .* Add --metric, of acc_norm, acc_bytes\."):
        read_sample_file(changed(BEFORE["endings"], tmp_path, unusual, every=True))


def test_a_filter_or_metric_counts_for_the_tasks_of_a_folder_that_have_it() -> None:
    by_filter = read_lm_eval(SAMPLES / "before", filter_name="first-word")
    scorers = {task: records[0].scorer for task, records in by_filter.items()}
    assert scorers == {"endings": "lm_eval:endings:acc@1", "next_word": "lm_eval:next_word:exact_match,first-word@1"}
    by_both = read_lm_eval(SAMPLES / "before", filter_name="capital", metric="acc_norm")
    scorers = {task: records[0].scorer for task, records in by_both.items()}
    assert scorers == {"endings": "lm_eval:endings:acc_norm@1", "next_word": "lm_eval:next_word:exact_match,capital@1"}


def test_a_filter_or_metric_that_no_task_of_a_folder_has_is_refused() -> None:
    both = r"of endings: none; next_word: capital, first-word\."
    with pytest.raises(DataError, match=rf"before: no filter 'strict'\. Choose another --filter; {both}"):
        read_lm_eval(SAMPLES / "before", filter_name="strict")
    with pytest.raises(DataError, match=r"no metric 'f1'.*--metric; of endings: acc, acc_norm; next_word: exact_match"):
        read_lm_eval(SAMPLES / "before", metric="f1", filter_name="capital")
    # The filter of one task says nothing of the filters of another one.
    with pytest.raises(DataError, match=r"samples_next_word.*: several filters, and none of them is chosen"):
        read_lm_eval(SAMPLES / "before", filter_name="none")
