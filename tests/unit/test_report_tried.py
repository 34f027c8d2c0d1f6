"""What the searches found, in tables and words."""

import json

import numpy as np
import pandas as pd
import pytest

from scmoe import report_tried as tried
from scmoe.nn import clusters


def clustering(way, ari, score, name="a", modalities="x+y"):
    return dict(kind="kind", set=name, way=way, modalities=modalities, ari=ari, stability=score,
                agreement=1.0)  # fmt: skip


@pytest.fixture
def rows():
    return pd.DataFrame(
        [
            clustering(clusters.SHARED, 0.6, 0.50),
            clustering("k-means", 0.2, 0.55),
            clustering("k-means", 0.9, 0.30, modalities="x"),
            clustering("Ward", 0.7, np.nan),  # not judged: no rule keeps it
        ]
    )


def test_each_rule_keeps_what_it_says(rows):
    mean = tried.cluster_rules(rows)["mean"]
    assert mean["k-means of all modalities"] == 0.2
    assert mean[tried.BEFORE] == 0.2
    assert mean["shared axes, or a rival 0% better"] == 0.2
    assert mean["shared axes, or a rival 20% better (used)"] == 0.6
    assert mean["shared axes always"] == 0.6
    assert mean["Ward, always"] == 0.7
    assert mean[tried.HINDSIGHT] == 0.9


def test_kinds_of_sets_count_alike(rows):
    one = rows.assign(kind="other", set="c", ari=1.0)
    table = tried.cluster_rules(pd.concat([rows, rows.assign(set="b"), one]))
    assert np.allclose(table["mean"], table[["kind", "other"]].mean(axis=1))


def test_a_variant_is_paired_with_what_it_varies():
    scores = dict(macro_f1=0.5, r2=0.1)
    made = [
        dict(set=name, inner=0, seed=0, variant=v, method=v, accuracy=accuracy + shift, **scores)
        for name, shift in (("a", 0.0), ("b", 0.2), ("c", 0.4))
        for v, accuracy in ((tried.ALONE, 0.3), ("wider", 0.4), (tried.STRICT, 0.5))
    ]
    made.append(made[0] | dict(set="d"))  # where not all was tried yet, nothing is compared
    table = tried.variants(pd.DataFrame(made))
    row = table.loc[(tried.ALONE, "wider", "accuracy")]
    assert row["difference"] == pytest.approx(0.1)
    assert row["low"] == pytest.approx(0.1)
    assert row["sets"] == 3
    assert len(table) == 3
    found = dict.fromkeys(("clusters", "groups", "heads"), pd.DataFrame())
    found["search"] = pd.DataFrame(made)
    assert "wider (accuracy +0.100)" in tried.said(found).data
    assert "wider" in tried.show(found, "search").data


def test_heads_are_compared_by_the_scores_that_they_have():
    rows = [dict(tried=tried.KERNEL, set=name, used=used, ari=0.5 + 0.1 * used + shift)
            for name, shift in (("a", 0.0), ("b", 0.1)) for used in (False, True)]  # fmt: skip
    rows += [dict(tried=tried.BERNOULLI, set="a", used=used, r2=0.2) for used in (False, True)]
    table = tried.other_heads(pd.DataFrame(rows))
    assert list(table.index) == [(tried.KERNEL, "ARI"), (tried.BERNOULLI, "R²")]
    assert table.loc[(tried.KERNEL, "ARI"), "difference"] == pytest.approx(0.1)
    assert table.loc[(tried.BERNOULLI, "R²"), "difference"] == 0
    found = dict.fromkeys(("clusters", "groups", "search"), pd.DataFrame())
    found["heads"] = pd.DataFrame(rows)
    assert f"ARI {tried.KERNEL}: +0.100" in tried.said(found).data
    assert "R²" in tried.show(found, "heads").data


def test_a_search_that_has_not_run_is_said_to_be_missing(tmp_path):
    found = tried.load(tmp_path)
    assert all(table.empty for table in found.values())
    assert tried.said(found).data == "Nothing was searched yet."
    for name in found:
        assert "has not run yet" in tried.show(found, name).data
    lines = "".join(json.dumps(dict(set="a", variant="v")) + "\n" for _ in range(2))
    (tmp_path / "search.jsonl").write_text(lines)
    assert len(tried.load(tmp_path)["search"]) == 2


def test_what_is_committed_can_be_shown():
    found = tried.load()
    assert found["clusters"]["set"].nunique() > 20
    assert found["groups"]["shift"].nunique() > 4
    for name in ("clusters", "groups"):
        assert tried.USED.strip() in tried.show(found, name).data
