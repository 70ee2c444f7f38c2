from __future__ import annotations

from pipelines.page import Section, render


def test_numbers_stand_on_the_right_and_texts_on_the_left() -> None:
    rows = [["a", "1.5", "lower", "a note that is longer than others"], ["b", "not computed", "lower", ""]]
    section = Section(title="t", columns=("figure", "value", "better", "note"), rows=rows)
    assert section.kinds[1:] == ["number", "text", "small wide"]
    page = render("p", [], [section])
    assert '<th scope="col" class="small wide">note</th>' in page
    assert '<td class="number" data-label="value">not computed</td>' in page
    assert '<td class="text" data-label="better">lower</td>' in page


def test_notes_have_no_empty_line_for_headings_and_a_missing_number_stands_among_numbers() -> None:
    notes = Section(title="Notes", columns=["", ""], rows=[["[1]", "there was none"]])
    assert "<thead>" not in render("p", [], [notes])
    assert Section(title="t", columns=["", "FVD"], rows=[["a", "-[1]"]]).kinds[1] == "number"
