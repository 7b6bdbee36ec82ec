"""Plots: 900 pixels wide, the same curves the same bytes, and nothing that data can do breaks them."""

import random
import struct
from pathlib import Path

import pytest

from tasks.curves import Curves
from tasks.plots import COLOURS, Shown, _looks, _running_mean, draw_comparison, draw_preference

PAIRED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def made(steps: int, metrics: tuple[str, ...] = PAIRED) -> Curves:
    draw = random.Random(steps)
    return Curves(
        tuple(range(1, steps + 1)), {name: tuple(draw.uniform(0, 1) for _ in range(steps)) for name in metrics}
    )


def size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG file, from its header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("steps", [1, 8, 59, 200])
def test_a_step_s_picture_is_900_pixels_wide_whatever_its_length(steps: int, tmp_path: Path) -> None:
    draw_preference(made(steps), tmp_path / "new" / "p.png")
    assert size(tmp_path / "new" / "p.png") == (900, 640)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.png"]


@pytest.mark.parametrize(
    "curves",
    [
        Curves((), {}),
        Curves((1, 2), {"loss": (1.0, 2.0)}),
        made(3, ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")),
        Curves((1, 2, 3), {"rewards/chosen": (None, 1.0, None), "rewards/accuracies": (0.5, None, 1.0)}),
    ],
    ids=["no steps", "no rewards", "single completions", "gaps"],
)
def test_what_is_missing_is_left_out(curves: Curves, tmp_path: Path) -> None:
    draw_preference(curves, tmp_path / "p.png")
    draw_comparison([Shown("one", None, None, curves)], tmp_path / "c.png", "title", 0)
    assert size(tmp_path / "p.png")[0] == size(tmp_path / "c.png")[0] == 900


def test_the_same_curves_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw_preference(made(20), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_comparison_grows_with_its_candidates_and_tells_them_apart(tmp_path: Path) -> None:
    many = [Shown("warm start", (0.1, None), (0.5, 0.1))]
    many += [Shown(f"candidate-{i}", (float(i), 0.1), (0.9, 0.01), made(30)) for i in range(10)]
    draw_comparison(many[:3], tmp_path / "few.png", "title", 14)
    draw_comparison(many, tmp_path / "many.png", "title", 14)
    assert size(tmp_path / "few.png")[1] < size(tmp_path / "many.png")[1] and size(tmp_path / "many.png")[0] == 900
    looks = _looks(many)
    assert len(COLOURS) < 10 and len({looks[one.label] for one in many}) == 11


def test_a_fault_leaves_no_half_written_picture(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        draw_preference(Curves((1, 2), {"rewards/chosen": (1.0, {})}), tmp_path / "p.png")  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_the_running_mean_by_hand() -> None:
    assert _running_mean([1.0, 2.0, 6.0, 4.0], 1) == [1.5, 3.0, 4.0, 5.0]
    assert _running_mean([1.0, 2.0], 0) == [1.0, 2.0]
