"""Draw the panel of a real run as docs/panel-WIDTH.svg.

python docs/export_panel.py

The run is `kd` of the recipe quickstart; what it recorded is in docs/panel-run/.
"""

from __future__ import annotations

import io
from pathlib import Path

from kdcore_panel.replay import recorded
from rich.console import Console

DOCS = Path(__file__).parent
SIZES = ((80, 24), (140, 30))  # columns and lines
_SHARE = 0.6  # of the run that is done


def picture(columns: int, lines: int) -> str:
    """The screen as SVG."""
    frame = recorded(DOCS / "panel-run", _SHARE)
    console = Console(
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=columns,
        height=lines,
    )
    console.print(frame)
    return console.export_svg(title="kdcore run quickstart", unique_id="panel")


def main() -> None:
    """Write the pictures."""
    for columns, lines in SIZES:
        path = DOCS / f"panel-{columns}.svg"
        path.write_text(picture(columns, lines), encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
