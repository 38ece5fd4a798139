"""Runs the campaign and writes its table: ``python -m campaign --help``.

Every case that ran is a line below ``runs/campaign``. Stopped and called again, it goes on: what
this source has passed is not run again.
"""

import argparse
import hashlib
import json
import multiprocessing
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from campaign.driver import ROOT, SOURCE, Driver
from campaign.parts import PARTS
from campaign.stores import Stores

RESULTS = ROOT / "runs" / "campaign"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- campaign -->", "<!-- /campaign -->"


def source_hash():
    """Hash of lcia's source and of the campaign's: results of another are no results."""
    digest = hashlib.sha256()
    for folder in (SOURCE / "lcia", Path(__file__).parent):
        for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.c"))):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit():
    """The commit, with a + if lcia's source is not as committed."""
    ask = ["git", "-C", str(ROOT)]
    name = subprocess.check_output([*ask, "rev-parse", "--short", "HEAD"], text=True).strip()
    changed = subprocess.run([*ask, "diff", "--quiet", "HEAD", "--", "src"], check=False)
    return name + ("+" if changed.returncode else "")


def read_results(part, source):
    """The cases of a part that this source has run, by name."""
    records = (record for record in _records(part) if record["source"] == source)
    return {record["case"]: record for record in records}


def _records(part):
    path = RESULTS / f"{part.name.replace(' ', '-')}.jsonl"
    lines = path.read_text().split("\n") if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def work(number, options, source, until, model):
    """Run every ``options.workers``-th case that is left, until the time is over."""
    driver, at = Driver(), commit()
    try:
        stores = Stores(driver, model)
        for part in (part for part in PARTS if not options.part or part.name in options.part):
            passed = {
                name for name, r in read_results(part, source).items() if r["problem"] is None
            }
            path = RESULTS / f"{part.name.replace(' ', '-')}.jsonl"
            part_until = min(until, time.monotonic() + options.part_minutes * 60)
            for i, (name, case) in enumerate(part.cases(stores, options.share)):
                if i % options.workers != number or name in passed:
                    continue
                started = time.monotonic()
                if started > part_until:
                    break
                problem = case()
                seconds = time.monotonic() - started
                record = {"case": name, "problem": problem, "seconds": round(seconds, 3)}
                with path.open("a") as file:
                    file.write(json.dumps({**record, "source": source, "commit": at}) + "\n")
                if problem:
                    print(f"{part.name}: {name}: {problem}", flush=True)  # noqa: T201
    finally:
        driver.close()


def table(source, page):
    """The table of what ran here, this source before an earlier one; what did not keeps its row."""
    lines = [
        "| part | each has to show | cases | failures | seconds | commit |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for part in PARTS:
        ran = [record["source"] for record in _records(part)]
        begins = f"| {part.name} | "
        if not ran:
            kept = [line for line in page.splitlines() if line.startswith(begins)]
            lines.extend(kept or [f"{begins}{part.oracle} | 0 | 0 | 0 | not run |"])
            continue
        results = read_results(part, source if source in ran else ran[-1]).values()
        failures = sum(record["problem"] is not None for record in results)
        seconds = sum(record["seconds"] for record in results)
        at = ", ".join(sorted({record["commit"] for record in results}))
        lines.append(
            f"{begins}{part.oracle} | {len(results):,} | {failures:,} | {seconds:,.0f} | {at} |"
        )
    return "\n".join(lines)


def write_table(source):
    """Put it between the marks of the page; return it."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    inside, after = rest.split(END)
    made = table(source, inside)
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    return made


def main():
    """Run what is left, and write the table."""
    from conftest import save_tiny_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS])
    parser.add_argument("--share", type=float, default=1.0, help="of the cases; drawn by seed")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    parser.add_argument("--part-minutes", type=float, default=1e6, help="and a part after so many")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    source, until = source_hash(), time.monotonic() + options.minutes * 60
    folder = Path(tempfile.mkdtemp(prefix="campaign-model-"))
    try:
        model = save_tiny_model(folder / "tiny")
        spawn = multiprocessing.get_context("spawn")
        workers = [
            spawn.Process(target=work, args=(number, options, source, until, model))
            for number in range(options.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        shutil.rmtree(folder)
    print(write_table(source))  # noqa: T201
    failed = any(r["problem"] for part in PARTS for r in read_results(part, source).values())
    raise SystemExit(failed or any(worker.exitcode for worker in workers))
