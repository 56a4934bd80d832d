"""The benchmark of on-policy training: its table is that of the runs, which are stubs here."""

import importlib.util
import json
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "learning" / "on_policy.py"


def test_the_interval_of_paired_differences_is_students(tmp_path):
    spec = importlib.util.spec_from_file_location("on_policy", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    places = {}
    for seed, (off, on) in enumerate([(0.5, 0.4), (0.6, 0.4), (0.7, 0.4)]):
        places[seed] = tmp_path / f"seed-{seed}"
        for stage, bits in (("offpolicy", off), ("onpolicy", on)):
            folder = places[seed] / f"mine.{stage}-12345678"
            folder.mkdir(parents=True)
            lines = [{"loss": 1.0}, {"eval/bits_per_byte": bits, "eval/facts": 0.5}]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
            (folder / "cpu_seconds.json").write_text("12.5")
    *rows, bits, facts = module.table(places)
    assert rows[2] == "| 0 | offpolicy | 12.5 | 0.5000 | 0.50 |" and len(rows) == 8
    # the mean of 0.1, 0.2 and 0.3, and 4.303 times 0.1 over the root of 3
    assert bits.startswith("eval/bits_per_byte, onpolicy less offpolicy: ")
    assert bits.endswith(" -0.2000, 95 % from -0.4484 to +0.0484 (3 pairs)")
    assert facts.endswith("+0.0000, 95 % from +0.0000 to +0.0000 (3 pairs)")
