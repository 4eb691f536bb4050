"""Pooling by region, one probe a region, and decisions that are the sum of their regions."""

import sys

import numpy as np
import pytest
import torch
from models import noise

from specsegdiff.errors import CheckpointError, ConfigError, DependencyError, ShapeError
from specsegdiff.probes.core import ProbeConfig, RegionProbes
from specsegdiff.probes.decision import Decision, Evidence
from specsegdiff.probes.pooling import IGNORE, Pooled, pool_all, pool_regions

REGIONS = ("vowel", "pause", "never")
CONFIG = ProbeConfig(REGIONS, size=4, minimum=2, penalty=1.0, tokens="layer 3")


def case(*, items=60, length=12, shift=2.0, seed=0):
    """Tokens whose third axis betrays a spoof in the vowel alone; a tenth belongs to no region."""
    tokens = noise(items, length, 4, scale=1.0, seed=seed)
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.choice([IGNORE, 0, 1], p=[0.1, 0.45, 0.45], size=(items, length)))
    spoof = torch.arange(items) % 3 > 0
    tokens[..., 2] += shift * ((labels == 0) & spoof[:, None])
    return tokens, labels, spoof


@pytest.fixture(scope="module")
def fitted():
    tokens, labels, spoof = case()
    return RegionProbes.fit(pool_regions(tokens, labels, count=3), spoof, CONFIG)


# ------------------------------------------------------------------ pooling


def test_a_region_is_the_mean_of_its_tokens_and_of_no_others():
    tokens, labels, _ = case()
    pooled = pool_regions(tokens, labels, count=3)
    for item in range(0, 60, 7):
        for region in range(3):
            own = tokens[item][labels[item] == region]
            assert pooled.counts[item, region] == len(own)
            expected = own.mean(0) if len(own) else torch.zeros(4)
            torch.testing.assert_close(pooled.values[item, region], expected)
    # whatever lies outside has no say at all
    outside = torch.where((labels == 0)[..., None], tokens, 1e6 * torch.ones(()))
    assert torch.equal(pool_regions(outside, labels, count=3).values[:, 0], pooled.values[:, 0])


def test_the_ablation_pools_what_indexing_drops():
    tokens, labels, _ = case()
    assert (labels == IGNORE).any()
    torch.testing.assert_close(pool_all(tokens).values[:, 0], tokens.mean(1))
    assert torch.equal(pool_all(tokens[:, :1]).values, tokens[:, :1])


def test_half_precision_is_summed_in_full():
    tokens = torch.full((1, 5000, 1), 0.1, dtype=torch.float16)
    mean = pool_all(tokens).values
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean[0, 0, 0], tokens[0, 0, 0].float(), rtol=1e-5, atol=0)


def test_batches_of_other_lengths_join():
    long, short = case(length=12), case(length=5, seed=1)
    parts = [pool_regions(tokens, labels, count=3) for tokens, labels, _ in (long, short)]
    joined = Pooled.cat(parts)
    assert torch.equal(joined.values[60:], parts[1].values)
    with pytest.raises(ShapeError, match="same regions"):
        Pooled.cat([parts[0], pool_all(long[0])])
    with pytest.raises(ShapeError, match="one or more"):
        Pooled.cat([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y: (t, y[:, :-1]), "one label per token"),
        (lambda t, y: (t, y.float()), "integer labels"),
        (lambda t, y: (t, y > 0), "integer labels"),
        (lambda t, y: (t, y + 3), "labels from -1"),
        (lambda t, y: (t, y - 1), "labels from -1"),
        (lambda t, y: (t.masked_fill(t > 1, torch.nan), y), "NaN"),
        (lambda t, y: (t.long(), y), "finite floating"),
        (lambda t, y: (t[0], y[0]), r"\(b, n, d\)"),
        (lambda t, y: (t[:, :0], y[:, :0]), "empty axis"),
        (lambda t, y: (t.numpy(), y), "ndarray"),
        (lambda t, y: (t, y.tolist()), "list"),
    ],
)
def test_tokens_and_labels_that_do_not_match_are_refused(change, message):
    tokens, labels, _ = case(items=4)
    with pytest.raises(ShapeError, match=message):
        pool_regions(*change(tokens, labels), count=3)


# ------------------------------------------------------------------ probes


def test_the_region_that_betrays_is_found_and_the_other_is_not(fitted):
    tokens, labels, spoof = case(seed=5)
    odds = fitted.log_odds(pool_regions(tokens, labels, count=3))
    right = ((odds > 0) == spoof[:, None]).float()
    there = odds.isfinite()
    assert float(right[:, 0][there[:, 0]].mean()) > 0.95
    assert float(right[:, 1][there[:, 1]].mean()) < 0.75
    assert fitted.fitted.tolist() == [True, True, False]
    assert fitted.say.tolist() == [0.5, 0.5, 0.0]


def test_a_probe_is_the_logistic_regression_that_it_says():
    tokens, labels, spoof = case()
    pooled = pool_regions(10 * tokens + 50, labels, count=3)
    probes = RegionProbes.fit(pooled, spoof, CONFIG)
    keep = pooled.counts[:, 0] >= 2
    rows, truth = pooled.values[keep, 0].double(), spoof[keep].double()
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    columns = torch.cat([(rows - mean) / scale, torch.ones(len(rows), 1).double()], dim=1)
    balance = torch.where(truth > 0, 0.5 / truth.sum(), 0.5 / (1 - truth).sum()) * len(truth)
    penalty = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    solution = torch.zeros(5, dtype=torch.float64)
    for _ in range(30):  # Newton's steps; the bias is not pulled
        chance = torch.sigmoid(columns @ solution)
        slope = columns.T @ (balance * (chance - truth)) + penalty @ solution
        curve = columns.T @ ((balance * chance * (1 - chance))[:, None] * columns) + penalty
        solution = solution - torch.linalg.solve(curve, slope)
    expected = columns @ solution
    # scikit-learn stops at a gradient of 1e-4
    torch.testing.assert_close(probes.log_odds(pooled)[keep, 0], expected, rtol=1e-3, atol=1e-3)


def test_rounding_of_a_constant_is_no_feature():
    tokens, labels, spoof = case()
    tokens[..., 0] = 1000.1
    pooled = pool_regions(tokens, labels, count=3)
    assert pooled.values[pooled.counts[:, 0] > 1, 0, 0].std() > 0
    assert float(RegionProbes.fit(pooled, spoof, CONFIG).weight[:, 0].abs().max()) < 0.01


def test_a_region_that_is_absent_abstains_and_changes_nothing(fitted):
    tokens, labels, _ = case(items=3)
    labels[:, :] = IGNORE
    labels[0, :6], labels[1, :6], labels[1, 6] = 0, 0, 1
    pooled = pool_regions(tokens, labels, count=3)
    odds, scores = fitted.log_odds(pooled), fitted(tokens, labels)
    # one token is fewer than the minimum of two
    assert odds.isfinite().tolist() == [[True, False, False], [True, False, False], [False] * 3]
    torch.testing.assert_close(scores[:2], 0.5 * odds[:2, 0])
    assert scores[2].isnan()
    assert fitted.contributions(pooled)[2].tolist() == [0.0, 0.0, 0.0]
    first, _, none = fitted.decide(tokens, labels)
    assert first.absent == ("pause", "never")
    assert none.score is None
    assert none.is_spoof is None
    assert none.rests_on == ()
    assert str(none).startswith("No decision")


def test_contributions_of_regions_and_of_tokens_sum_to_the_score(fitted):
    tokens, labels, _ = case(seed=3)
    scores = fitted(tokens, labels)
    for decision, score in zip(fitted.decide(tokens, labels), scores.tolist(), strict=True):
        assert decision.score == score
        assert sum(e.contribution for e in decision.evidence) == pytest.approx(score, abs=1e-12)
        sizes = [abs(e.contribution) for e in decision.evidence]
        assert sizes == sorted(sizes, reverse=True)
    parts = fitted.token_contributions(tokens, labels)
    # means are float32
    torch.testing.assert_close(parts.sum(1), scores, rtol=0, atol=1e-5)
    assert not parts[labels == IGNORE].any()
    shares = fitted.contributions(pool_regions(tokens, labels, count=3))
    torch.testing.assert_close((parts * (labels == 0)).sum(1), shares[:, 0], rtol=0, atol=1e-5)


def test_held_out_items_silence_a_region_at_chance(fitted):
    tokens, labels, spoof = case(items=240, seed=7)
    pooled = pool_regions(tokens, labels, count=3)
    weighed = fitted.weighed(pooled, spoof)
    assert weighed.say[0] > 3 * weighed.say[1]
    assert weighed.say[2] == 0
    assert bool((weighed.say >= 0).all())
    assert fitted.say.tolist() == [0.5, 0.5, 0.0]  # the first ones are left alone
    # labels the wrong way round speak against every region, and none may count backwards
    turned = fitted.weighed(pooled, ~spoof)
    assert float(turned.say[0]) < 0.01
    assert bool((turned.say >= 0).all())


def test_what_is_saved_is_what_is_loaded(fitted, tmp_path):
    tokens, labels, _ = case(seed=9)
    fitted.save_pretrained(tmp_path)
    loaded = RegionProbes.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    assert torch.equal(loaded(tokens, labels), fitted(tokens, labels))
    assert loaded.decide(tokens, labels) == fitted.decide(tokens, labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        RegionProbes.from_pretrained(tmp_path)


def test_what_cannot_be_fitted_is_refused(fitted):
    tokens, labels, spoof = case()
    pooled = pool_regions(tokens, labels, count=3)
    with pytest.raises(ShapeError, match="both classes"):
        RegionProbes.fit(pooled, torch.ones_like(spoof), CONFIG)
    with pytest.raises(ShapeError, match="both classes"):
        fitted.weighed(pooled, torch.zeros_like(spoof))
    with pytest.raises(ShapeError, match="one bool per item"):
        RegionProbes.fit(pooled, spoof.long(), CONFIG)
    for bad in (spoof[:-1], spoof.tolist(), spoof[:, None]):
        with pytest.raises(ShapeError, match="one bool per item"):
            RegionProbes.fit(pooled, bad, CONFIG)
    empty = pool_regions(tokens, torch.full_like(labels, IGNORE), count=3)
    with pytest.raises(ShapeError, match="no region of"):
        RegionProbes.fit(empty, spoof, CONFIG)
    with pytest.raises(ShapeError, match=r"3 regions .* length 4 \(layer 3\)"):
        fitted.log_odds(pool_regions(tokens[..., :3], labels, count=3))
    with pytest.raises(ShapeError, match="3 regions"):
        RegionProbes.fit(pool_all(tokens), spoof, CONFIG)


@pytest.mark.parametrize(
    "changes",
    [
        {"regions": ()},
        {"regions": ("a", "a")},
        {"size": 0},
        {"size": True},
        {"minimum": 0},
        {"penalty": 0.0},
        {"penalty": float("nan")},
    ],
)
def test_settings_outside_their_domain_are_refused(changes):
    (field,) = changes
    with pytest.raises(ConfigError, match=field):
        ProbeConfig(**{"regions": ("a",), "size": 2, **changes})


def test_means_that_do_not_fit_their_counts_are_refused():
    values, counts = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ShapeError, match="counts"):
        Pooled(values, counts[:, :2])
    with pytest.raises(ShapeError, match="1 NaN"):
        Pooled(values.index_put((torch.tensor(0),) * 3, torch.tensor(torch.nan)), counts)


def test_without_scikit_learn_fitting_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    tokens, labels, spoof = case(items=6)
    with pytest.raises(DependencyError, match=r"specsegdiff\[probes\]"):
        RegionProbes.fit(pool_regions(tokens, labels, count=3), spoof, CONFIG)


# ------------------------------------------------------------------ decisions


def decision(*contributions):
    evidence = [Evidence(f"r{i}", 5, 2 * c, c) for i, c in enumerate(contributions)]
    evidence.sort(key=lambda e: -abs(e.contribution))
    return Decision(sum(contributions), tuple(evidence), ("gone",))


def test_a_decision_rests_on_the_fewest_regions_with_most_of_its_evidence():
    assert decision(2.0, 0.2, 0.1).rests_on == ("r0",)
    assert decision(0.5, 0.5, 0.5).rests_on == ("r0", "r1", "r2")
    assert decision(0.3, -0.2, 2.0, 1.0).rests_on == ("r2", "r3")
    assert decision(1.0, -3.0).rests_on == ("r1",)
    assert decision(1.0, -3.0).is_spoof is False


def test_a_report_names_regions_contributions_and_what_was_absent():
    text = str(decision(2.0, -0.25))
    assert text == (
        "spoof, log-odds +1.75; rests on r0. Contributions: r0 +2.00, r1 -0.25. Absent: gone."
    )
    assert str(decision(-1.0)).startswith("bona fide, log-odds -1.00; rests on r0.")
