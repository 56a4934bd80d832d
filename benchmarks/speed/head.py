"""What the head and its losses cost: targets G1 to G5 and G9, each a table and a ratio.

    python benchmarks/speed/head.py               all of them, about a quarter of an hour
    python benchmarks/speed/head.py G3 G4         some of them

Heads of Qwen2.5-0.5B (896 x 151,936) and of a teacher of width 1,536, both ways, in float32.
Side by side: naive (full logits and the textbook's formula by autograd), products only (the matrix
products of the same chunks without any loss, which nothing can be faster than), kdcore (a loss of
five lines in the engine's function, compiled), uncompiled, and by hand (its gradient written down).
RHO keeps 30 % of 1,024 tokens by their excess over given reference losses.

Memory is the growth of the resident set beyond what states and heads take; the student head's
gradient alone is 0.51 GiB. Each variant runs in a process of its own, one thread, in turn, three
times; medians.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping

from head_variants import once
from variants import in_turn

ROUNDS = 3
Found = Mapping[str, Mapping[str, float]]


def ratio(found: Found, key: str, one: str, other: str) -> float:
    """One variant's figure of another's."""
    return found[one][key] / found[other][key]


def tell(found: Found) -> None:
    """The table."""
    print("| variant, loss, tokens, type | CPU seconds | GiB | loss |\n|---|---|---|---|")
    for name, one in found.items():
        figures = f"{one['seconds']:.2f} | {one['memory']:.2f} | {one['value']:.5f}"
        print(f"| {name.replace(':', ', ')} | {figures} |")


def tell_of_naive_memory() -> None:
    """G1 and G2: memory at 2,048 tokens."""
    naive, few, many = "naive:kl:2048:float32", "kdcore:kl:512:float32", "kdcore:kl:2048:float32"
    found = in_turn(__file__, (naive, few, many), ROUNDS)
    tell(found)
    print(f"\nG1, memory of naive (at most 0.10): {ratio(found, 'memory', many, naive):.3f}")
    print(f"G2, 2,048 tokens of 512 (at most 1.10): {ratio(found, 'memory', many, few):.3f}\n")


def tell_of_losses() -> None:
    """G3: two divergences at 512 tokens."""
    for loss in ("kl", "skew-reverse-kl"):
        ways = ("naive", "products only", "kdcore", "uncompiled")
        naive, products, kdcore, plain = (f"{way}:{loss}:512:float32" for way in ways)
        found = in_turn(__file__, (naive, products, kdcore, plain), ROUNDS)
        tell(found)
        of = {what: ratio(found, "seconds", kdcore, what) for what in (products, naive)}
        print(f"\nG3, {loss}, CPU of products only (at most 1.15): {of[products]:.2f}")
        print(f"G3, {loss}, CPU of naive (at most 1): {of[naive]:.2f}")
        held = ratio(found, "memory", kdcore, naive)
        print(f"G3, {loss}, memory of naive (at most 0.45): {held:.2f}\n")


def tell_of_plugins() -> None:
    """G4: five lines of a plug-in against a gradient that is written down."""
    kdcore, hand = "kdcore:kl:512:float32", "by hand:kl:512:float32"
    found = in_turn(__file__, (kdcore, hand), ROUNDS)
    tell(found)
    print(f"\nG4, CPU of by hand (at most 1.15): {ratio(found, 'seconds', kdcore, hand):.2f}")
    print(f"G4, memory of by hand (at most 1.15): {ratio(found, 'memory', kdcore, hand):.2f}\n")


def tell_of_selection() -> None:
    """G5: RHO at 30 %."""
    naive, rho = "naive:ce:1024:float32", "rho:ce:1024:float32"
    found = in_turn(__file__, (naive, rho), ROUNDS)
    tell(found)
    print(f"\nG5, CPU of naive (at most 0.75): {ratio(found, 'seconds', rho, naive):.2f}")
    apart = abs(found[naive]["value"] - found[rho]["value"])
    print(f"G5, losses apart (at most 1e-5): {apart:.1e}\n")


def tell_of_halves() -> None:
    """G9: bf16 weights where the CPU has no units for them."""
    naive, kdcore = "naive:kl:64:bfloat16", "kdcore:kl:64:bfloat16"
    found = in_turn(__file__, (naive, kdcore), ROUNDS)
    tell(found)
    print(f"\nG9, CPU of naive (at most 0.20): {ratio(found, 'seconds', kdcore, naive):.2f}\n")


TARGETS: dict[str, Callable[[], None]] = {
    "G1": tell_of_naive_memory,
    "G2": tell_of_naive_memory,
    "G3": tell_of_losses,
    "G4": tell_of_plugins,
    "G5": tell_of_selection,
    "G9": tell_of_halves,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.variant:
        variant, loss, tokens, dtype = asked.variant.split(":")
        print(json.dumps(once(variant, loss, int(tokens), dtype)))
        return
    for each in dict.fromkeys(TARGETS[name] for name in asked.targets or TARGETS):
        each()


if __name__ == "__main__":
    main()
