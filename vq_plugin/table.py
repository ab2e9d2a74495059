"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()
) -> str:
    """Aligned columns under a header and a rule; those of the indices ``right`` to the right.

    Names come from models and files: what a terminal would obey is escaped.

    Example:
        >>> print(format_table(["name", "n"], [["a", "1"], ["bc", "23"]], right=(1,)))
        name   n
        --------
        a      1
        bc    23
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, rows)])


def printable(text: str) -> str:
    r"""A text on one line, control characters and those that turn the line around escaped.

    Example:
        >>> print(printable("fc\x1b[2J"))
        fc\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def format_bytes(count: int) -> str:
    """Bytes for people, in powers of 1000.

    Example:
        >>> format_bytes(640), format_bytes(15_045_008)
        ('640 B', '15.0 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95 or unit == "GB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
