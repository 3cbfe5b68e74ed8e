"""Metrics: golden values, properties, and planted models that must get the score that they deserve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sensorium.evaluation import captions, intervals, metrics


def given(*strategies):
    """Hypothesis without time limits, which a busy machine breaks."""
    quiet = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    return lambda test: quiet(hypothesis_given(*strategies)(test))


labels = st.lists(st.booleans(), min_size=2, max_size=40).filter(lambda v: len(set(v)) == 2)


@st.composite
def scored(draw):
    truth = draw(labels)
    scores = draw(st.lists(st.integers(-5, 5).map(float), min_size=len(truth), max_size=len(truth)))
    return np.array(scores), np.array(truth)


def brute_auc(scores, truth):
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[truth] for n in scores[~truth]]
    return sum(pairs) / len(pairs)


# AUC ------------------------------------------------------------------------------------------------------------------


@given(scored())
def test_auc_equals_pair_counting_with_ties(case):
    scores, truth = case
    assert metrics.auc(scores, truth) == pytest.approx(brute_auc(scores, truth), abs=1e-12)


@given(scored())
def test_auc_ignores_monotone_maps_and_mirrors_under_negation(case):
    scores, truth = case
    assert metrics.auc(np.exp(scores), truth) == pytest.approx(metrics.auc(scores, truth))
    assert metrics.auc(-scores, truth) == pytest.approx(1 - metrics.auc(scores, truth))


@given(scored(), st.integers(0, 2**31))
def test_weighted_auc_equals_auc_of_the_repeated_items(case, seed):
    scores, truth = case
    weights = np.random.default_rng(seed).integers(0, 4, len(scores))
    value = metrics.auc_statistic(scores, truth)(weights[None].astype(float))[0]
    repeated, again = np.repeat(scores, weights), np.repeat(truth, weights)
    if again.any() and not again.all():
        assert value == pytest.approx(brute_auc(repeated, again))
    else:
        assert math.isnan(value)


def test_auc_of_constant_scores_is_a_half_and_of_one_class_undefined():
    assert metrics.auc([3.0] * 4, [True, False, True, False]) == 0.5
    assert math.isnan(metrics.auc([1.0, 2.0], [True, True]))
    assert math.isnan(metrics.auc([], []))
    with pytest.raises(ValueError, match="finite"):
        metrics.auc([math.nan, 1.0], [True, False])


def test_delong_golden_values():
    # By hand: placement values of the positives and of the negatives.
    scores = np.array([0.9, 0.8, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2])
    truth = np.array([1, 1, 0, 1, 0, 1, 0, 0], bool)
    result = metrics.delong(scores, truth)
    assert result.value == 0.8125
    v10, v01 = np.array([1, 1, 0.75, 0.5]), np.array([0.5, 0.75, 1, 1])
    se = math.sqrt(v10.var(ddof=1) / 4 + v01.var(ddof=1) / 4)
    middle, spread = math.log(0.8125 / 0.1875), 1.959963984540054 * se / (0.8125 * 0.1875)
    assert result.low == pytest.approx(1 / (1 + math.exp(-(middle - spread))))
    assert result.high == pytest.approx(1 / (1 + math.exp(-(middle + spread))))


@given(scored())
def test_delong_interval_holds_its_value(case):
    result = metrics.delong(*case)
    if not math.isnan(result.low):
        assert 0 <= result.low <= result.value <= result.high <= 1


# Decisions ------------------------------------------------------------------------------------------------------------


@given(labels, st.booleans())
def test_who_always_says_the_same_scores_nothing(truth, word):
    said = [word] * len(truth)
    assert metrics.balanced_accuracy(said, truth) == 0.5
    assert metrics.mcc(said, truth) == 0.0
    assert metrics.yes_ratio(said) == float(word)


@given(labels)
def test_who_is_right_scores_one(truth):
    assert metrics.balanced_accuracy(truth, truth) == metrics.mcc(truth, truth) == 1.0
    assert metrics.mcc(~np.array(truth), truth) == -1.0


def test_mcc_is_the_correlation():
    rng = np.random.default_rng(1)
    said, truth = rng.random(60) < 0.4, rng.random(60) < 0.5
    assert metrics.mcc(said, truth) == pytest.approx(np.corrcoef(said, truth)[0, 1])


@given(scored())
def test_best_threshold_is_the_best_on_its_own_items(case):
    scores, truth = case
    threshold = metrics.best_threshold(scores, truth)
    best = metrics.balanced_accuracy(scores > threshold, truth)
    assert all(best >= metrics.balanced_accuracy(scores > other, truth) - 1e-9 for other in np.arange(-6.5, 6))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes.", True),
        ("no", False),
        ("No, there is not.", False),
        ("yes, there is no doubt", True),
        ("There isn't.", False),
        ("I cannot know", None),
        ("", None),
        ("nothing", None),
        ("YES!", True),
        ("There is not a cat.", False),
    ],
)
def test_parse_yes_no(text, said):
    assert metrics.parse_yes_no(text) is said


# Counts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("6", 6),
        ("six", 6),
        ("There are six apples.", 6),
        ("There are 12.", 12),
        ("twenty-one", 21),
        ("Forty two", 42),
        ("There is a cat.", 1),
        ("There are no cats.", 0),
        ("none", 0),
        ("I see a group of three dogs", 3),
        ("a pair of shoes", 2),
        ("a dozen", 12),
        ("many", None),
        ("", None),
        ("twenty", 20),
        ("seventeen birds", 17),
    ],
)
def test_parse_count(text, count):
    assert metrics.parse_count(text) == count


def test_count_scores():
    result = metrics.count_scores([3, 4, None, 10], [3, 3, 2, 5])
    assert (result.exact, result.off_by_one, result.mae, result.unparsed) == (0.25, 0.5, 2.0, 0.25)


# Groups: what a model that does not look, or does not combine, can get ------------------------------------------------

answers = arrays.arrays(bool, st.tuples(st.integers(1, 20), st.just(2)))
truth_2x2 = np.eye(2, dtype=bool)


@given(answers)
def test_blind_model_has_no_right_question_and_no_right_group(said):
    blind = np.broadcast_to(said[:, None, :], (len(said), 2, 2)) == truth_2x2
    result = metrics.group_scores(blind)
    assert result.question == result.group == 0


@given(answers)
def test_question_blind_model_has_no_right_image_and_no_right_group(said):
    deaf = np.broadcast_to(said[:, :, None], (len(said), 2, 2)) == truth_2x2
    result = metrics.group_scores(deaf)
    assert result.image == result.group == 0


@given(st.integers(1, 20), st.integers(0, 2**31), st.floats(-3, 3))
def test_additive_scorer_has_no_right_group(n, seed, threshold):
    rng = np.random.default_rng(seed)
    image, question = rng.normal(size=(n, 2, 1)), rng.normal(size=(n, 1, 2))
    assert metrics.group_scores((image + question > threshold) == truth_2x2).group == 0


def test_group_scores_of_coin_and_oracle():
    coin = np.random.default_rng(0).random((40000, 2, 2)) < 0.5
    result = metrics.group_scores(coin)
    assert result.question == pytest.approx(0.25, abs=0.01)
    assert result.image == pytest.approx(0.25, abs=0.01)
    assert result.group == pytest.approx(1 / 16, abs=0.005)
    assert metrics.group_scores(np.ones((3, 2, 2), bool)) == metrics.GroupScores(1, 1, 1)
    with pytest.raises(ValueError, match="shape"):
        metrics.group_scores(np.ones((3, 4)))


# Retrieval ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_recall_grows_with_k_and_ends_at_one(queries, size, seed):
    rng = np.random.default_rng(seed)
    similarity, positives = rng.integers(0, 4, (queries, size)), rng.random((queries, size)) < 0.4
    positives[np.arange(queries), rng.integers(0, size, queries)] = True
    values = [metrics.recall_at_k(similarity, positives, k) for k in range(1, size + 1)]
    assert values == sorted(values)
    assert values[-1] == 1


def test_recall_golden_and_ties_against_the_query():
    similarity = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [1.0, 1.0, 1.0]])
    assert metrics.recall_at_k(similarity, np.eye(3, dtype=bool), 1) == pytest.approx(1 / 3)
    assert metrics.recall_at_k(similarity, np.eye(3, dtype=bool), 2) == pytest.approx(2 / 3)
    assert list(metrics.positive_ranks(similarity, np.eye(3, dtype=bool))) == [1, 2, 3]
    assert list(metrics.positive_ranks(similarity, np.zeros((3, 3), bool))) == [4, 4, 4]


# Intervals ------------------------------------------------------------------------------------------------------------


def test_wilson_golden_values():
    assert intervals.wilson(0, 10) == pytest.approx((0, 0.2775328), abs=1e-6)
    assert intervals.wilson(5, 10) == pytest.approx((0.2365931, 0.7634069), abs=1e-6)
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I
    assert intervals.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    with pytest.raises(ValueError, match="cannot be"):
        intervals.wilson(3, 2)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_stays_in_range(case):
    low, high = intervals.wilson(*case)
    assert 0 <= low <= case[0] / case[1] <= high <= 1


def test_clustered_rate_is_wider_where_clusters_agree_and_never_narrower():
    values = np.repeat([1, 0, 1, 1, 0, 1, 0, 1, 1, 0], 10)
    clusters = np.repeat(np.arange(10), 10)
    alone, clustered = intervals.rate(values), intervals.rate(values, clusters)
    assert clustered.value == alone.value == 0.6
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert clustered.clusters == 10
    balanced = np.tile([1, 0], 50)
    assert intervals.rate(balanced, clusters).low >= intervals.rate(balanced).low - 1e-12


def test_clustered_rate_without_variance_counts_each_cluster_once():
    assert intervals.rate(np.ones(100), np.repeat(np.arange(10), 10)).low == pytest.approx(intervals.wilson(10, 10)[0])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(100):
        quality = rng.normal(0, 1, 30)
        clusters = np.repeat(np.arange(30), 4)
        values = quality[clusters] + rng.normal(0, 1, 120)
        result = intervals.bootstrap(metrics.mean_statistic(values), 120, clusters, resamples=200, seed=1)
        covered += result.low <= 0 <= result.high
    assert 0.88 <= covered / 100 <= 1


def test_items_resampled_without_their_clusters_would_be_overconfident():
    quality = np.random.default_rng(4).normal(size=20)
    values, clusters = np.repeat(quality, 10), np.repeat(np.arange(20), 10)
    wide = intervals.bootstrap(metrics.mean_statistic(values), 200, clusters)
    narrow = intervals.bootstrap(metrics.mean_statistic(values), 200)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(5)
    hard = rng.random(300) < 0.4
    first, second = ~hard, ~hard & (rng.random(300) > 0.1)
    one, other = metrics.mean_statistic(first), metrics.mean_statistic(second)
    difference = intervals.bootstrap(lambda w: one(w) - other(w), 300)
    assert difference.excludes(0)
    assert difference.value == pytest.approx(first.mean() - second.mean())
    assert intervals.bootstrap(one, 300).low < intervals.bootstrap(other, 300).high


@given(scored(), st.integers(0, 5))
def test_bootstrap_repeats_itself(case, seed):
    statistic = metrics.auc_statistic(*case)
    runs = [intervals.bootstrap(statistic, len(case[0]), resamples=50, seed=seed) for _ in range(2)]
    assert repr(runs[0]) == repr(runs[1])


def test_mcnemar_golden_values():
    # R: binom.test(2, 12)$p.value = 0.03857422; no discordant pair gives 1
    first = [True] * 10 + [False] * 2 + [True] * 5
    second = [False] * 10 + [True] * 2 + [True] * 5
    assert intervals.mcnemar(first, second) == pytest.approx(0.03857422, abs=1e-8)
    assert intervals.mcnemar(second, first) == intervals.mcnemar(first, second)
    assert intervals.mcnemar(first, first) == 1.0


def test_holm_golden_values():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_empty_sets_give_nan_and_no_error():
    assert math.isnan(intervals.rate([]).value)
    assert math.isnan(intervals.bootstrap(metrics.mean_statistic([]), 0).value)


# Captions -------------------------------------------------------------------------------------------------------------

HYPOTHESES = [
    "a red apple on a green table",
    "two dogs run across the grass",
    "a man rides a bicycle down the street",
    "a cat",
    "the boat is on the water near a bridge",
]
REFERENCES = [
    ["a red apple on a green background", "an apple on a table"],
    ["two white dogs stand on the grass"],
    ["a man rides a red bicycle on the street", "someone rides a bike down a street", "a man on a bicycle"],
    ["a grey striped cat sits on the floor"],
    ["a boat on the water"],
]


def test_caption_scores_equal_pycocoevalcap():
    # pycocoevalcap 1.2 on the same tokens
    assert captions.cider_d(HYPOTHESES, REFERENCES) == pytest.approx(2.611551806108175, abs=1e-9)
    assert captions.rouge_l(HYPOTHESES, REFERENCES) == pytest.approx(0.6513300252458085, abs=1e-9)
    expected = [0.7632731134882446, 0.5875679167151556, 0.46904664495973286, 0.3831096096484025]
    assert [captions.bleu(HYPOTHESES, REFERENCES, n) for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-8)


def test_caption_scores_at_their_ends():
    own = [references[0] for references in REFERENCES]
    single = [[reference] for reference in own]
    assert captions.bleu(own, single) == pytest.approx(1)
    assert captions.rouge_l(own, single) == pytest.approx(1)
    assert captions.cider_d(own, single) == pytest.approx(10)
    assert captions.cider_d(own[:1], single[:1]) == 0, "one picture alone has no informative words"
    nothing = [""] * len(own)
    assert captions.bleu(nothing, single) == captions.rouge_l(nothing, single) == captions.cider_d(nothing, single) == 0


@given(st.permutations(range(len(HYPOTHESES))))
def test_order_of_captions_does_not_matter(order):
    hypotheses, references = [HYPOTHESES[i] for i in order], [REFERENCES[i] for i in order]
    for score in (captions.bleu, captions.rouge_l, captions.cider_d):
        assert score(hypotheses, references) == pytest.approx(score(HYPOTHESES, REFERENCES))


@pytest.mark.parametrize(
    ("caption", "nouns", "hit"),
    [
        ("A cat on a mat.", ["cat"], True),
        ("Two cats", ["cat"], True),
        ("A caterpillar", ["cat"], False),
        ("A kitten", ["cat"], True),
        ("Cherries", ["cherry"], True),
        ("Buses on a street", ["bus"], True),
        ("A pair of glasses", ["glasses"], True),
        ("Some people", ["person"], True),
        ("a hot dog", ["ice cream"], False),
        ("an ice cream cone", ["ice cream"], True),
        ("a big CAR", ["car", "truck"], True),
        ("", ["cat"], False),
        ("Leaves and knives", ["leaf"], True),
    ],
)
def test_noun_hits(caption, nouns, hit):
    assert captions.noun_hits([caption], [nouns], {"cat": ["kitten"]}) == [hit]


def test_distinct_catches_collapse():
    assert captions.distinct(["A cat.", "a cat", "A dog"]) == pytest.approx(2 / 3)


def test_chair_counts_what_is_not_there():
    result = captions.chair(
        ["a cat and a dog", "a red apple", "", "a horse"],
        [["cat"], ["apple", "table"], ["car"], ["sheep"]],
        ["cat", "dog", "apple", "table", "car", "horse", "sheep"],
        uncertain=[[], [], [], ["horse"]],
    )
    assert result.instance == pytest.approx(1 / 3)
    assert result.sentence == pytest.approx(1 / 4)
    assert result.recall == pytest.approx(2 / 5)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="references"):
        captions.bleu(["a"], [])
    with pytest.raises(ValueError, match="at least one"):
        captions.cider_d(["a"], ["a plain string"])
