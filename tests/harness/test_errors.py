"""Mistakes of a user's: one message each, which names what is wrong and the mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest

from harness.conftest import asked
from swaa import SlidingWindow, UserError
from swaa.harness import SwaaLM, check_output, evaluate, table, write_results
from swaa.harness.tasks import Tasks, find_tasks, matching

OPTIONS = {"until": [], "max_gen_toks": 4}


def test_a_continuation_that_does_not_fit_is_refused_by_name(ours: Any) -> None:
    lm = ours(max_length=10)
    fits = asked("loglikelihood", "abcdefgh", "ijk")  # eleven tokens, of which the last is not read
    assert len(lm.loglikelihood([fits], disable_tqdm=True)) == 1
    longer = asked("loglikelihood", "abcdefghi", "jkl", task="far", document=7)
    message = "task 'far', document 7: 9 tokens of context and 3 of continuation are 12, and at most 11 fit"
    with pytest.raises(UserError, match=message) as caught:
        lm.loglikelihood([fits, longer], disable_tqdm=True)
    assert "--truncate" in str(caught.value)
    with pytest.raises(UserError, match="of continuation are 14, and at most 11") as caught:
        lm.loglikelihood([asked("loglikelihood", "ab", "c" * 12)], disable_tqdm=True)
    assert "truncate" not in str(caught.value), "there would be no context left"


def test_a_prompt_that_does_not_fit_is_refused_by_name(ours: Any) -> None:
    lm = ours(max_length=10)
    assert len(lm.generate_until([asked("generate_until", "abcdef", OPTIONS)], disable_tqdm=True)) == 1
    message = "task 'quiz', document 0: 7 prompt tokens and 4 new ones are 11, and at most 10 fit max_length=10"
    with pytest.raises(UserError, match=message):
        lm.generate_until([asked("generate_until", "abcdefg", OPTIONS)], disable_tqdm=True)


def test_what_is_cut_is_counted(ours: Any) -> None:
    """Cut on the left, as stock does it: what is left is scored as a request of its own would be."""
    lm = ours(SlidingWindow(3).in_phase("prefill"), max_length=10, truncate=True)
    pair, rest = ("zzzabcdefgh", "ijk"), ("abcdefgh", "ijk")
    answers = lm.loglikelihood([asked("loglikelihood", *pair), asked("loglikelihood", *rest)], disable_tqdm=True)
    assert answers[0] == answers[1]
    cut = asked("generate_until", "zzzabcdef", OPTIONS, task="echo")
    texts = lm.generate_until([cut, asked("generate_until", "abcdef", OPTIONS)], disable_tqdm=True)
    assert texts[0] == texts[1]
    assert lm.truncated == {"quiz": 1, "echo": 1}


def test_the_table_says_what_was_cut(model: Any, tokenizer: Any, tasks: Path) -> None:
    options = {"include_path": tasks, "max_length": 24, "truncate": True, "bootstrap_iters": 0}
    results = evaluate(model, "echo", tokenizer=tokenizer, **options)
    assert results["swaa"]["truncated"] == {"echo": 3}
    assert "echo: 3 requests were cut on the left to fit." in table(results)


def test_an_empty_continuation_is_refused(ours: Any) -> None:
    with pytest.raises(UserError, match="document 0: expected tokens in the context and in the continuation"):
        ours().loglikelihood([asked("loglikelihood", "abc", "")], disable_tqdm=True)


def test_stocks_own_truncation_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="truncation: expected False, got True. Use truncate=True"):
        SwaaLM(model, tokenizer=tokenizer, truncation=True)


def test_a_policy_comes_from_a_file(folder: Path, tasks: Path, tmp_path: Path) -> None:
    """By lm-eval's own means: the model is known to it by name, and its arguments end at every comma."""
    file = tmp_path / "policy.txt"
    policy = SlidingWindow(8).on_layers([0, 2]).in_phase("prefill")
    file.write_text(f"{policy!r}\n")
    options = {"tasks": ["prose"], "task_manager": find_tasks(["prose"], tasks, {})[0], "bootstrap_iters": 0}
    results = lm_eval.simple_evaluate("swaa", f"pretrained={folder},policy_file={file},device=cpu", **options)
    assert results["config"]["policy"] == repr(policy)
    expected = evaluate(folder, "prose", policy=policy, include_path=tasks, device="cpu", bootstrap_iters=0)
    assert results["results"] == expected["results"]
    arguments = f"pretrained={folder},policy=SlidingWindow(8).on_layers([0, 2]),device=cpu"
    with pytest.raises(UserError, match="--model_args\\? These end at every comma. .* policy_file=FILE"):
        lm_eval.simple_evaluate("swaa", arguments, **options)
    with pytest.raises(UserError, match="policy_file: expected no policy beside it, got both"):
        SwaaLM(folder, policy=policy, policy_file=file)
    with pytest.raises(UserError, match="nothere.txt cannot be read"):
        SwaaLM(folder, policy_file=tmp_path / "nothere.txt")


def test_an_unknown_task_is_suggested(tasks: Path) -> None:
    """With the tests' tasks alone: the index of lm-eval's own takes many seconds to read."""
    manager = Tasks(include_path=tasks, include_defaults=False)
    with pytest.raises(UserError, match="unknown task 'far_colors'. Did you mean 'far_colours'\\?"):
        matching("far_colors", manager)
    assert matching("*o*", manager) == ["echo", "far_colours", "prose"]
    file = str(tasks / "echo.yaml")
    assert matching(file, manager) == [file]
    with pytest.raises(UserError, match="include_path: there is no folder"):
        find_tasks(["echo"], tasks / "nothere", {})
    with pytest.raises(UserError, match="tasks: expected at least one name"):
        find_tasks([], tasks, {})


def test_data_that_are_not_there(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    task = "task: lost\ndataset_path: json\ndataset_kwargs: {data_files: {test: nothere.jsonl}}\ntest_split: test\n"
    (tmp_path / "lost.yaml").write_text(task + "output_type: generate_until\ndoc_to_text: a\ndoc_to_target: b\n")
    with pytest.raises(UserError, match="tasks lost: lm-eval cannot prepare them \\(FileNotFoundError: .*nothere"):
        evaluate(model, "lost", tokenizer=tokenizer, include_path=tmp_path)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_a_limit_of_no_documents(model: Any, limit: Any) -> None:
    with pytest.raises(UserError, match="limit: expected a number of documents >= 1"):
        evaluate(model, "echo", limit=limit)


def test_results_are_not_written_over(tmp_path: Path) -> None:
    results: dict[str, Any] = {"results": {}, "versions": {}, "n-shot": {}, "swaa": {"truncated": {}}}
    write_results(results, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "results.json").read_text())["swaa"] == {"truncated": {}}
    with pytest.raises(UserError, match="holds results already"):
        write_results(results, tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        check_output(tmp_path / "file")


def test_without_lm_eval_the_extra_is_named() -> None:
    """A fresh interpreter whose search for lm_eval finds nothing, as where it is not installed."""
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'lm_eval':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name='lm_eval')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from swaa.cli import main\n"
        "sys.exit(main(['lm-eval', '--model', 'smollm2-135m-instruct', '--tasks', 'echo']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "swaa: error: lm-evaluation-harness is not installed. Install it: pip install 'swaa[lm-eval]'\n"
    assert done.stderr == expected
