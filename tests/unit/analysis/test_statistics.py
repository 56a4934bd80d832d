"""Intervals hold what they promise, on made-up sweeps whose truth is known. No run is trained."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcore.analysis.statistics.differences import Difference, Part, difference, residuals
from kdcore.analysis.statistics.student_t import quantile, two_sided
from kdcore.analysis.statistics.verdicts import holm, judge

pytestmark = pytest.mark.slow

SWEEPS = 2000
MOST_FALSE = 123  # of 2,000 at 5 %: 100 expected, and 1 % of such experiments have more
DOCUMENTS = 60


# Student's t: tables


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),
    [
        (0.95, 1, 12.706204736),
        (0.95, 2, 4.3026527297),
        (0.95, 4, 2.7764451052),
        (0.99, 9, 3.2498355416),
        (0.95, 30, 2.0422724563),
        (0.95, 1e6, 1.9599663),
    ],
)
def test_quantiles_are_those_of_tables(level, freedom, expected):
    assert quantile(level, freedom) == pytest.approx(expected, rel=2e-7)


@given(st.floats(0.01, 50), st.floats(1, 500))
def test_probability_and_quantile_are_inverse(t, freedom):
    p = two_sided(t, freedom)
    if 1e-12 < p < 1 - 1e-9:
        assert quantile(1 - p, freedom) == pytest.approx(t, rel=1e-3)


@pytest.mark.parametrize("t", [0.1, 1.0, 7.0])
def test_one_and_two_degrees_have_closed_forms(t):
    assert two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-10)
    assert two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-10)


def test_any_degrees_of_freedom_have_the_integral_of_the_density():
    freedom, t = 2.5, np.linspace(0, 3, 200_001)
    logs = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    density = math.exp(logs) / math.sqrt(freedom * math.pi)
    density *= (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    assert two_sided(3, freedom) == pytest.approx(1 - 2 * np.trapezoid(density, t), abs=1e-9)


# Sweeps that are made up


def sweeps(rng, seeds, correlation, *, effect=0.0, document_noise=0.0, rest=0.0):
    """Differences [sweeps, seeds] and residuals [sweeps, seeds, documents] or None.

    The scores of two arms under one seed correlate; the standard deviation over seeds is 1.
    """
    shared = rng.standard_normal((SWEEPS, seeds)) * math.sqrt(correlation)
    one, two = (
        shared + rng.standard_normal((SWEEPS, seeds)) * math.sqrt(1 - correlation) for _ in "ab"
    )
    of_seeds = two - one + effect
    if not document_noise:
        return of_seeds, None
    documents = rng.standard_normal((SWEEPS, 1, DOCUMENTS)) * document_noise
    more = rng.standard_normal((SWEEPS, seeds, DOCUMENTS)) * rest
    nats = of_seeds[:, :, None] + documents + more
    found = nats.mean(-1)
    return found, nats - found[:, :, None]


def verdicts(made, margin=0.0):
    of_seeds, documents = made
    found = [
        difference(each, None if documents is None else documents[n])
        for n, each in enumerate(of_seeds)
    ]
    return [judge([each], [margin], lower_is_better=True)[0].verdict for each in found]


def false(made):
    return sum(verdict in ("better", "worse") for verdict in verdicts(made))


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("correlation", [0, 0.5, 0.8])
def test_null_sweeps_have_as_many_false_verdicts_as_promised(seeds, correlation):
    rng = np.random.default_rng([seeds, int(10 * correlation)])
    assert 60 < false(sweeps(rng, seeds, correlation)) <= MOST_FALSE


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("document_noise", "rest"), [(2, 0), (5, 0), (5, 5), (20, 2)])
def test_noise_of_documents_that_all_seeds_share_makes_no_verdicts(seeds, document_noise, rest):
    rng = np.random.default_rng([seeds, document_noise, rest])
    made = sweeps(rng, seeds, 0.8, document_noise=document_noise, rest=rest)
    assert false(made) <= MOST_FALSE
    if document_noise > 2:  # the same sweeps judged by their seeds alone
        assert false((made[0], None)) > 1.5 * MOST_FALSE


def test_noise_of_documents_that_seeds_do_not_share_counts_once():
    made = sweeps(np.random.default_rng(5), 5, 0.8, document_noise=1e-9, rest=8)
    assert 60 < false(made) <= MOST_FALSE


@pytest.mark.parametrize(("effect", "least"), [(2, 0.95), (1, 0.7), (0.5, 0.25)])
def test_five_paired_seeds_of_correlation_08_find_effects(effect, least):
    rng = np.random.default_rng([5, int(10 * effect)])
    found = verdicts(sweeps(rng, 5, 0.8, effect=-effect))
    assert found.count("better") >= least * SWEEPS
    assert found.count("worse") <= 2


def test_a_difference_below_the_margin_is_called_so_and_one_above_it_hardly_ever():
    rng = np.random.default_rng(7)
    within = verdicts(sweeps(rng, 8, 0.95, effect=0.1), margin=1)
    assert within.count("no difference above the margin") > 0.9 * SWEEPS
    at_margin = verdicts(sweeps(rng, 8, 0.95, effect=1.0), margin=1)
    assert at_margin.count("no difference above the margin") <= 0.035 * SWEEPS


def test_of_four_null_comparisons_one_in_twenty_sweeps_at_most_has_a_false_verdict():
    rng, wrong = np.random.default_rng(11), 0
    for each in sweeps(rng, 4 * 5, 0.5)[0]:
        found = [difference(part) for part in each.reshape(4, 5)]
        judged = judge(found, [0.0] * 4, lower_is_better=True)
        wrong += any(one.verdict in ("better", "worse") for one in judged)
    assert wrong <= MOST_FALSE


# What is said


def known(mean, error, seeds=5):
    return Difference(mean, seeds, of_seeds=Part(error**2, seeds - 1))


@pytest.mark.parametrize(("mean", "lower", "verdict"), [(-1, True, "better"), (1, True, "worse")])
def test_which_way_is_better(mean, lower, verdict):
    assert judge([known(mean, 0.1)], [0.1], lower_is_better=lower)[0].verdict == verdict
    other = judge([known(-mean, 0.1)], [0.1], lower_is_better=not lower)[0]
    assert other.verdict == verdict


def test_reasons():
    def said(*found, margin=0.5):
        first = judge(found, [margin] * len(found), lower_is_better=True)[0]
        return first.verdict, first.reason

    assert said(known(0.01, 0.1)) == (
        "no difference above the margin",
        "the whole interval lies inside the margin",
    )
    assert "though 0 is not in it" in said(known(0.1, 0.01))[1]
    assert "more seeds" in said(known(0.1, 5.0))[1]
    several = [known(0.3, 0.1)] * 4  # p = 0.04
    assert said(*several, margin=0.01) == (
        "undecided",
        "the interval excludes 0, but not after the correction for 4 comparisons",
    )
    assert said(known(0.1, 0.1), *several, margin=0.38)[1].startswith("the interval lies inside")


@pytest.mark.parametrize(("seeds", "words"), [(0, "no seed"), (1, "one seed"), (2, "two seeds")])
def test_fewer_than_three_seeds_never_have_a_verdict(seeds, words):
    found = difference(np.full(seeds, -9.0), np.zeros((seeds, 50)))
    judged = judge([found], [0.1], lower_is_better=True)[0]
    assert judged.verdict is None and judged.reason.startswith(words)


def test_one_seed_has_the_interval_of_its_documents():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, 200)
    nats = (0.5 + rng.standard_normal(200)) * tokens
    mean = np.array([nats.sum() / tokens.sum()])
    found = difference(mean, residuals(nats[None], tokens, mean))
    assert (found.source, found.seeds, found.documents) == ("documents", 1, 200)
    drawn = rng.integers(0, 200, (4000, 200))  # a bootstrap of the documents
    ratios = nats[drawn].sum(1) / tokens[drawn].sum(1)
    low, high = found.interval()
    assert (high - low) / 2 / quantile(0.95, 199) == pytest.approx(ratios.std(), rel=0.05)


def test_without_seeds_enough_or_documents_nothing_is_known():
    found = difference(np.array([1.0, 2.0]))
    assert found.source is None and math.isnan(found.interval()[0]) and found.mean == 1.5


def test_holm_tests_the_clearest_first_and_stops_at_the_first_that_is_not_clear():
    clear, fair, open_ = (known(mean, 0.1, seeds=9) for mean in (0.6, 0.25, 0.2))
    assert holm([fair, clear]) == [1, 0]  # fair has p = 0.037, which is enough for the last one
    assert holm([fair, open_, clear]) == [2]
    assert holm([fair]) == [0] and holm([open_]) == [] and holm([]) == []


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_more_comparisons_never_make_more_differences(means):
    found = [known(mean, 0.5) for mean in means]
    alone = {n for n, each in enumerate(found) if holm([each])}
    assert set(holm(found)) <= alone
