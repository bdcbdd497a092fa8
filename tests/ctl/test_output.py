import pytest

from rolemesh.ctl import output
from rolemesh.ctl.output import Cell


def test_columns_are_as_wide_as_needed_and_numbers_stand_to_the_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.put_table(
        ("NAME", "COUNT", "AGE", "WHY"),
        [("a-long-name", 7, "3m 12s", ""), ("b", None, "47 s", "because")],
    )
    assert capsys.readouterr().out.splitlines() == [
        "NAME         COUNT     AGE  WHY",
        "a-long-name      7  3m 12s  -",
        "b                -    47 s  because",
    ]


def test_text_from_elsewhere_cannot_move_the_cursor_or_begin_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.put_table(("X",), [("a\033[2Jb\nc",), (Cell("d\re", "red"),)])
    assert capsys.readouterr().out == "X\na�[2Jb�c\nd�e\n"
    output.complain("a\nb")
    assert capsys.readouterr().err == "rolemeshctl: a�b\n"


def test_without_a_terminal_there_is_neither_colour_nor_progress(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with output.Progress() as progress:
        progress.say("waiting")
    output.put(output.coloured("text", "red"))
    assert capsys.readouterr() == ("text\n", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (3.14, "3.1 s"),
        (47.4, "47 s"),
        (60, "1m 0s"),
        (3599.9, "59m 59s"),
        (7260, "2h 1m"),
        (200000, "2d 7h"),
    ],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text
