"""`rforce eval report`: a page and tables from the results of an evaluation."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path | None, typer.Argument(help="Folder with results.json and its clips.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder or results.json of another model on the same prompts and seeds.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of results.json instead.")] = False,
) -> None:
    """Write report.html, which needs nothing else to be read, and report.md beside results.json."""
    from reward_forcing.evaluation.results import json_schema, read_results

    if schema:
        typer.echo(json_schema(), nl=False)
        return
    if folder is None:
        raise ValueError("name the folder with results.json: rforce eval report FOLDER")
    from reward_forcing.evaluation.report import write_report

    results = read_results(folder)
    other = read_results(against) if against is not None else None
    typer.echo(f"wrote {write_report(results, folder if folder.is_dir() else folder.parent, other)}")
