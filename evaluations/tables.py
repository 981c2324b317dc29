"""Tables with names that somebody chose, as csv and Markdown: what a spreadsheet or a page would run is text."""

import csv
import html
import io
import re

# with which a spreadsheet takes a cell for a formula
FORMULA = ("=", "+", "-", "@", "\t", "\r")
CSV_ENCODING = "utf-8-sig"  # by its mark a spreadsheet knows the encoding


def csv_bytes(lines):
    """Lists of cells as csv. Text that a spreadsheet would compute gets an apostrophe; numbers stay."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_csv_cell(cell) for cell in line] for line in lines)
    return text.getvalue().encode(CSV_ENCODING)


def _csv_cell(cell):
    if not isinstance(cell, str):
        return cell
    text = re.sub(r"[\r\n\t]", " ", cell)
    return f"'{text}" if cell.startswith(FORMULA) and not re.fullmatch(r"-\d+(\.\d*)?(e[+-]?\d+)?", cell) else text


def markdown_table(lines):
    """A Markdown table of lists of texts, the first of which are the headings."""
    head, *body = ["| " + " | ".join(map(_markdown_cell, line)) + " |\n" for line in lines]
    return "".join([head, "| --- |" + " ---: |" * (len(lines[0]) - 1) + "\n", *body])


def _markdown_cell(text):
    return re.sub(r"([\\|*`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
