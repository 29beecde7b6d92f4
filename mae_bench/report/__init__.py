"""Tables on paper and screen: the same numbers as a page, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mae_bench.aggregate import TableResult
from mae_bench.errors import UserError, unknown
from mae_bench.job import write_atomically
from mae_bench.records import Record

# Format -> the file it becomes in the report's folder.
FILES = {
    "html": "index.html",
    "md": "tables.md",
    "tex": "tables.tex",
    "csv": "results.csv",
    "json": "results.json",
    "metafile": "metafile.yml",
    "model-index": "model-index.md",
    "records": "records",
    "png": "figures",
    "svg": "figures",
    "pdf": "figures",
}
# These are folders.
FOLDERS = frozenset({"records", "png", "svg", "pdf"})
FORMATS = tuple(FILES)
DEFAULT_FORMATS = ("html", "md", "tex", "csv", "json")


def write_report(
    results: Sequence[TableResult],
    records: Mapping[str, Record],
    out: Path,
    formats: Iterable[str] = DEFAULT_FORMATS,
    *,
    work_dir: Path,
) -> list[Path]:
    """Write the report's files, each whole or not at all.

    Args:
        records: run id -> record, of every run to describe (pretraining runs too).
        out: folder for the files; made when it is not there.
        formats: names from `FORMATS`.
        work_dir: holds `runs/<id>/`, for learning curves and pictures.

    Returns:
        The files written, in the order of `formats`.

    Raises:
        UserError: unknown format, or `out` cannot be written.
    """
    wanted = list(dict.fromkeys(formats))
    for name in wanted:
        if name not in FILES:
            raise unknown("report format", name, FORMATS)
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            path = out / FILES[name]
            if name in FOLDERS:
                files = _render_files(name, results, records)
                path.mkdir(exist_ok=True)
                for file, content in files.items():
                    write_atomically(path / file, content)
            else:
                write_atomically(path, _render(name, results, records, out, work_dir))
            written.append(path)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out} ({error}). Give another folder with --out."
        ) from None
    return written


def _render_files(
    name: str, results: Sequence[TableResult], records: Mapping[str, Record]
) -> dict[str, bytes]:
    """The files of a format that is a folder."""
    if name == "records":
        from mae_bench.report import exported

        return exported.render(records)
    from mae_bench.report import drawn

    return drawn.render(results, records, name)


def _render(
    name: str,
    results: Sequence[TableResult],
    records: Mapping[str, Record],
    out: Path,
    work_dir: Path,
) -> str:
    """The content of one file; what a format needs is imported when it is asked for."""
    if name == "html":
        from mae_bench.report import album, html

        page = html.render(results, records, work_dir / "runs", work_dir / "cache" / "pictures")
        album.write_beside(page.pictures, out)
        return page.text
    if name == "md":
        from mae_bench.report import markdown

        return markdown.render(results)
    if name == "tex":
        from mae_bench.report import latex

        return latex.render(results)
    if name in {"metafile", "model-index"}:
        from mae_bench.report import model_cards

        render_card = model_cards.metafile if name == "metafile" else model_cards.model_index
        return render_card(results, records)
    from mae_bench.report import long_form

    render = long_form.render_json if name == "json" else long_form.render_csv
    return render(results, records)
