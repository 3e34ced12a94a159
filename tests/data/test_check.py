import pytest

from hetjax.data import check_dataset
from hetjax.data.reading.parquet import ParquetSource
from hetjax.errors import DataError
from tests.harness.dataset_files import write_parquet
from tests.harness.sample_loaders import make_loader


def check(config, per_image=2):
    loader = make_loader(config, per_image=per_image)
    return check_dataset(loader.trained.joined, loader)


def test_a_valid_dataset_is_counted(make_dataset, make_config):
    summary = check(make_config(make_dataset(6)))
    assert (summary.samples, summary.media, summary.missing, summary.bad) == (6, 6, (), ())


def test_bad_lines_and_missing_images_within_the_share_are_listed(make_dataset, make_config):
    path = make_dataset(10)
    path.write_text(path.read_text() + "{broken\n")
    (path.parent / "3.png").unlink()
    summary = check(make_config(path))
    assert summary.samples == 11
    assert summary.missing == (str(path.parent / "3.png"),)
    assert [reason.split(": ")[0] for reason in summary.bad] == [f"{path}:4", f"{path}:11"]


def test_too_many_missing_images_stop_before_training_and_name_the_first(make_dataset, make_config):
    path = make_dataset(10)
    for i in (2, 5, 7, 8, 9):
        (path.parent / f"{i}.png").unlink()
    with pytest.raises(DataError) as error:
        check(make_config(path, max_bad_share=0.4))
    for part in ("5 of 10 samples are bad", "at most 4", f"{path}:3: ", "2.png", f"{path}:8: ", "and 2 more"):
        assert part in str(error.value)


def test_a_dataset_without_a_good_line_stops_whatever_the_share(tmp_path, make_config):
    path = tmp_path / "d.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(DataError, match="2 of 2 samples are bad"):
        check(make_config(path, max_bad_share=1.0))


def test_samples_that_never_fit_stop_before_training(make_dataset, make_config):
    with pytest.raises(DataError, match=r"none of the 4 samples tried .* \(seq_len\)"):
        check(make_config(make_dataset(9)), per_image=100)


def test_a_truncated_image_among_those_tried_is_listed(make_dataset, make_config):
    path = make_dataset(4, truncated=[1])
    assert [reason.split(": ")[0] for reason in check(make_config(path)).bad] == [f"{path}:2"]


def test_more_images_than_a_batch_has_capacity_for_are_bad(make_dataset, make_config):
    path = make_dataset(3)
    path.write_text(path.read_text().replace('["1.png"]', '["1.png", "2.png"]'))
    assert "2 images, more than 1 (processor.images)" in check(make_config(path)).bad[0]


def test_of_a_large_table_a_few_row_groups_are_read(tmp_path, make_config, monkeypatch):
    pytest.importorskip("pyarrow")
    read, groups = ParquetSource.read, set()
    monkeypatch.setattr(ParquetSource, "read", lambda self, group: groups.add(group) or read(self, group))
    path = write_parquet(tmp_path / "a.parquet", [{"prompt": "?", "completion": "1"}] * 12_000, rows_a_group=40)
    summary = check(make_config(path, images=0))
    assert summary.samples == 12_000 and not summary.bad
    assert len(groups) == 16 and {0, 299} < groups


def test_held_out_samples_are_tried_as_questions(tmp_path, make_config):
    path, answer = tmp_path / "d.jsonl", "a" * 100
    path.write_text(f'{{"prompt": "?", "completion": "{answer}"}}\n' * 2)
    loader = make_loader(make_config(path, images=0))
    with pytest.raises(DataError, match="none of the 2 samples tried"):
        check_dataset(loader.trained.joined, loader)
    assert check_dataset(loader.trained.joined, loader, held_out=True).bad == ()
