"""The committed tables are what the committed results say."""

from pathlib import Path

from benchmarks import tables


def test_benchmarks_page_is_regenerated_from_the_results_without_a_difference():
    assert tables.page() == tables.PAGE.read_text(encoding="utf-8")


def test_every_folder_of_results_is_on_the_page():
    files = tables.RESULTS.rglob("results.jsonl")
    assert {str(Path(f).parent.relative_to(tables.RESULTS)) for f in files} == set(tables.RECIPES)
