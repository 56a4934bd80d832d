"""Draw the panel of a real run as SVG: `python docs/export_panel.py RUN --at 0.6`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from kdcore_panel.replay import recorded
from rich.console import Console

WIDTHS = (80, 140)


def main() -> None:
    """Write panel-WIDTH.svg for each width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--at", type=float, default=1.0, help="share of the run that is done")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    frame = recorded(asked.run, asked.at)
    for width in WIDTHS:
        console = Console(
            record=True, file=io.StringIO(), force_terminal=True, width=width, height=50
        )
        console.print(frame)
        title = f"kdcore run {frame.facts.name.partition('.')[0]}"
        path = asked.out / f"panel-{width}.svg"
        path.write_text(console.export_svg(title=title, unique_id="panel"), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
