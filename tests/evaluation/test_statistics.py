from __future__ import annotations

import numpy as np
import pytest

from captioner.evaluation.metric import Metric, compare, intervals, mean_metric


def draws(seed: int, mean: float, images: int = 400) -> Metric:
    return mean_metric("m", np.random.default_rng(seed).normal(mean, 10, images))


def test_an_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    metric = draws(0, 50)
    low, high = intervals({"m": metric}, samples=4000)["m"]
    error = metric.per_image.std() / 20
    assert low == pytest.approx(metric.value - 1.96 * error, abs=0.1)
    assert high == pytest.approx(metric.value + 1.96 * error, abs=0.1)
    assert intervals({"m": metric}) == intervals({"m": metric})
    assert intervals({"m": metric}, seed=1) != intervals({"m": metric})


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(200):
        low, high = intervals({"m": draws(seed, 50, images=100)}, samples=300)["m"]
        covered += low <= 50 <= high
    assert 180 <= covered <= 199  # of 190 expected; 3 standard deviations are 9


def test_equal_runs_do_not_differ_and_different_ones_do() -> None:
    a = draws(0, 50)
    same = compare(a, a)
    assert (same.difference, same.p_bootstrap, same.p_randomisation) == (0, 1, 1)
    better = mean_metric("m", a.per_image + np.random.default_rng(5).normal(1, 3, 400))
    found = compare(a, better)
    assert found.low > 0 and found.p_bootstrap < 0.01 and found.p_randomisation < 0.01
    assert compare(better, a).difference == pytest.approx(-found.difference)


def test_the_tests_reject_true_equality_rarely() -> None:
    rejected = [0, 0]
    for seed in range(200):
        generator = np.random.default_rng(seed)
        a = mean_metric("m", generator.normal(0, 1, 100))
        b = mean_metric("m", generator.normal(0, 1, 100))
        found = compare(a, b, samples=200)
        rejected[0] += found.p_bootstrap < 0.05
        rejected[1] += found.p_randomisation < 0.05
    assert min(rejected) >= 1 and max(rejected) <= 21  # 10 expected, 3.1 standard deviation


def test_more_images_than_fit_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = intervals({"m": draws(0, 50)}, samples=50)
    monkeypatch.setattr("captioner.evaluation.metric._CELLS", 1)
    after = intervals({"m": draws(0, 50)}, samples=50)
    assert after["m"] == pytest.approx(before["m"])
