"""Result folders: the same results give the same bytes, and come back as they went in."""

import math
from pathlib import Path

import pytest

from evaluation.scores import ItemScore, Results, Score, mean_score, read_generations, write_results

ROWS = [ItemScore("b", 1.0), ItemScore("a", 0.0), ItemScore("c", 1.0), ItemScore("d", 0.0)]


def test_the_standard_error_is_the_sample_deviation_over_root_n() -> None:
    # Values 1, 0, 1, 0: mean 1/2, variance 4 * 1/4 / 3 = 1/3, standard error sqrt(1/12).
    score = mean_score("bench", "acc", ROWS, True)
    assert (score.name, score.value, score.n) == ("bench/acc", 0.5, 4)
    assert score.stderr == pytest.approx(math.sqrt(1 / 12))


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    scores = [mean_score("bench", "acc", ROWS, True), Score("bench", "ppl", math.inf, None, 4, False)]
    text = [{"item": "a", "text": "line\u2028separator"}]
    write_results(tmp_path / "r", scores, {"bench/acc": ROWS}, text)
    back = Results.read([tmp_path / "r"])
    assert back.scores["bench/acc"] == scores[0]
    assert math.isnan(back.scores["bench/ppl"].value)
    assert back.items["bench/acc"] == {"a": 0.0, "b": 1.0, "c": 1.0, "d": 0.0}
    assert read_generations(tmp_path / "r") == text


def test_the_order_of_scores_and_items_does_not_change_a_byte(tmp_path: Path) -> None:
    scores = [mean_score("bench", "acc", ROWS, True), Score("a", "b", 1.0, None, 1)]
    write_results(tmp_path / "x", scores, {"bench/acc": ROWS})
    write_results(tmp_path / "y", scores[::-1], {"bench/acc": ROWS[::-1]})
    for name in ("scores.json", "items.jsonl"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_a_result_is_never_overwritten_and_leaves_no_draft(tmp_path: Path) -> None:
    write_results(tmp_path / "r", [], {})
    with pytest.raises(FileExistsError, match="never overwritten"):
        write_results(tmp_path / "r", [], {})
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_comes_twice_is_refused() -> None:
    score = Score("bench", "acc", 1.0, None, 1)
    with pytest.raises(ValueError, match="comes twice"):
        Results.of([score, score])
    with pytest.raises(ValueError, match="1 items come twice"):
        Results.of([score], {"bench/acc": [ItemScore("a", 1.0), ItemScore("a", 0.0)]})


def test_a_name_with_a_slash_is_refused() -> None:
    with pytest.raises(ValueError, match="slash"):
        Score("a/b", "acc", 1.0, None, 1)
