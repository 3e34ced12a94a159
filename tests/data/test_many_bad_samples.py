"""A pass over data with many damaged samples: each is named once, none is trained on, nothing grows or hangs."""

import pytest

from tests.harness.damaged_dataset import BATCH, make_dataset, run


@pytest.mark.slow
@pytest.mark.parametrize("packed", [1, 4])
def test_training_goes_over_damaged_samples_to_the_end_of_an_epoch(tmp_path, packed):
    good, damaged = 1000, 100
    path, bad = make_dataset(tmp_path, good, damaged)
    found = run(path, packed=packed)
    # What an epoch leaves over, too little for a batch, is not trained on.
    left_over = (good + damaged) % BATCH if packed == 1 else 2 * BATCH * packed
    assert len(bad - set(found.named)) <= left_over
    assert packed > 1 or found.batches == (good + damaged) // BATCH
    assert set(found.named) <= bad and set(found.named.values()) == {1}
    assert all(reason.startswith(f"{path}:") and "\n" not in reason and len(reason) < 1200 for reason in found.reasons)
    assert found.longest < 2
    assert found.memory[3] - found.memory[1] < 24 << 20
