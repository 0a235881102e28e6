"""With many VMs: starting a command, scraping, and what the daemon does when nothing happens."""

from __future__ import annotations

from tests.bench import size_commands, size_scrape

SCRAPE_SECONDS = 0.25


def test_a_scrape_is_quick_and_two_share_the_work() -> None:
    rows = {row.way: row for row in size_scrape.compare(repeats=5)}
    assert rows["a quarter is new"].samples > 500 * 4 * 8 * 2
    assert rows["a quarter is new"].fastest_seconds < SCRAPE_SECONDS
    for way in ("every VM is new", "a quarter is new"):
        alone, two = rows[way].fastest_seconds, rows[f"{way}, two at once"].fastest_seconds
        assert two < 2 * alone, "two at once take more than twice as long"


def test_commands_start_fast() -> None:
    ratios = {row.command: row.least_ratio for row in size_commands.compare()}
    assert ratios["gmemd --help"] < 3
    assert ratios["gmemd status --json"] < 10
