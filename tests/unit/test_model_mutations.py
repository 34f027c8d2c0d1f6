"""Whatever happened to a MuData on its way here: it is trained on or refused, without a trace."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scmoe
from scmoe.data import DataError, Transform, check, split_mudata
from tests.unit.test_data_mutations import mutated

TINY = scmoe.preset().replace(d=8, n_patches=2, n_heads=2, n_experts=2, epochs=1, members=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(mdata=mutated(), key=st.sampled_from(["cell_type", None]))
def test_a_mutated_mudata_is_trained_on_or_refused_with_nothing_left_behind(mdata, key):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(mdata, key)
            split = split_mudata(mdata, key)
            Transform().fit(split.train).transform(split.test)
            if key is None:
                split.groups = ["0", "1", "2"]
            model = scmoe.ScMoE("supervised" if key else "unsupervised", TINY)
            model.fit(split, device="cpu", progress=False, checkpoint=Path(folder) / "run")
        except DataError:
            assert list(Path(folder).iterdir()) == []
            return
        probabilities = model.predict(split.test).drop(columns="group")
        assert np.isfinite(probabilities.to_numpy()).all()
        assert np.isfinite(model.get_latent_representation(split.test)).all()
        assert [path.name for path in Path(folder).iterdir()] == ["run"]  # to resume from
