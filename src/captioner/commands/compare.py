"""What compare.py does: two scored runs tested in pairs, or several in a table."""

import dataclasses

from captioner import config as schema
from captioner.evaluation.compare import compare_runs, format_comparison, format_seeds, seed_table
from captioner.evaluation.records import load_record
from captioner.evaluation.report import write_report
from captioner.files import write_json
from captioner.runs.upgrade import upgrade


def compare(config: schema.CompareConfig) -> str:
    """The table of two runs' differences, or of several runs; written to `out` if given."""
    runs = [load_record(path) for path in config.runs]
    runs = [dataclasses.replace(run, scores=upgrade(run.scores)) for run in runs]
    if len(runs) > 2:
        table = seed_table(runs)
        if config.out is not None:
            write_json(config.out, {"runs": [run.name for run in runs], "metrics": table})
        return format_seeds(table, runs)
    if runs[0].name == runs[1].name:  # then they are called by their files
        runs = [dataclasses.replace(a, name=b) for a, b in zip(runs, config.runs, strict=True)]
    found = compare_runs(
        *runs, metric=config.metric, shown=config.shown, samples=config.samples, seed=config.seed
    )
    if config.out is not None:
        write_json(config.out, found.as_json())
    if config.report is not None:
        write_report(config.report, runs, title=f"{found.names[0]} and {found.names[1]}")
    return format_comparison(found)
