"""Tables of text, aligned or in Markdown."""

from statistics import median


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def middle(values: list[float] | None) -> float | None:
    return median(values) if values else None


def text(header: list[str], rows: list[list[str]], names: int, markdown: bool) -> str:
    """The first `names` columns are words, to the left; the rest are numbers, to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows)]

    def aligned(cells: list[str]) -> list[str]:
        pairs = enumerate(zip(cells, widths))
        return [cell.ljust(width) if index < names else cell.rjust(width) for index, (cell, width) in pairs]

    if not markdown:
        return "\n".join("  ".join(aligned(cells)).rstrip() for cells in [header, *rows])
    rule = ["-" * width if index < names else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [aligned(header), rule, *map(aligned, rows)])
