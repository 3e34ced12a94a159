import json

import numpy as np
import pytest

from hetjax.data import eval_batches, load_tokenizer, loss_batches
from hetjax.errors import ConfigError, DataError
from tests.harness.sample_loaders import make_loader, pixels_of

TOKENIZER = load_tokenizer(None)


def batches(config, batch_size=4):
    return list(eval_batches(make_loader(config), batch_size))


@pytest.fixture
def config(make_dataset, make_config):
    path = make_dataset(10)
    return make_config(path, eval=str(path))


def test_prompts_come_in_order_with_their_answers(config, tmp_path):
    found = batches(config)
    assert [batch.count for batch in found] == [4, 4, 2]
    assert [answer for batch in found for (answer,) in batch.expected] == [str(i) for i in range(10)]
    for n, batch in enumerate(found):
        llm, images = batch.arrays["llm"], batch.arrays["vision"]["images"]
        assert images.shape == (4, 1, 8, 8, 3)
        assert (llm["tokens"].shape, llm["tokens"].dtype, batch.lengths.dtype) == ((4, 48), np.int32, np.int32)
        for row in range(batch.count):
            length, tokens = batch.lengths[row], llm["tokens"][row]
            assert TOKENIZER.decode(tokens[:length]) == f"user\nWhat is {4 * n + row}?\nassistant\n"
            assert (tokens[length:] == TOKENIZER.pad).all()
            shown = np.flatnonzero(tokens == TOKENIZER.placeholder("image"))
            assert llm["image_positions"][row].tolist() == shown.tolist()
            np.testing.assert_allclose(images[row, 0], pixels_of(tmp_path / f"{4 * n + row}.png", 8), atol=1e-6)


def test_the_last_batch_is_filled_with_its_last_sample(config):
    last = batches(config)[-1]
    for arrays in last.arrays.values():
        for value in arrays.values():
            np.testing.assert_array_equal(value[2:], value[[1, 1]])
    assert last.lengths[1] == last.lengths[2] == last.lengths[3]


def test_bad_samples_are_skipped_and_named_within_the_share(make_dataset, make_config):
    path = make_dataset(6, truncated=[1])
    found = batches(make_config(path, eval=str(path)))
    assert [answer for batch in found for (answer,) in batch.expected] == ["0", "2", "3", "4", "5"]
    assert [reason.split(": ")[0] for batch in found for reason in batch.bad] == [f"{path}:2"]
    with pytest.raises(DataError, match=r"max_bad_share 0\.1 allows"):
        batches(make_config(path, eval=str(path), max_bad_share=0.1))


def test_no_eval_file_is_a_config_error(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.eval is null"):
        batches(make_config(tmp_path / "train.jsonl"))


def test_a_missing_eval_file_is_an_error_before_the_first_batch_is_asked_for(make_config, tmp_path):
    with pytest.raises(DataError, match="absent"):
        eval_batches(make_loader(make_config(tmp_path, eval=str(tmp_path / "absent.jsonl"))), 4)


def test_a_prompt_ends_before_the_last_answer_and_images_behind_it_are_not_read(tmp_path, make_dataset, make_config):
    make_dataset(1)
    talk = [("user", "<image>q"), ("assistant", "one"), ("user", "r"), ("assistant", "two"), ("user", "<image>")]
    messages = [{"role": role, "content": text} for role, text in talk]
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": messages, "images": ["0.png", "absent.png"]}))
    (batch,) = batches(make_config(path, eval=str(path), seq_len=80), batch_size=1)
    prompt = batch.arrays["llm"]["tokens"][0, : batch.lengths[0]]
    assert TOKENIZER.decode(prompt) == "user\nq\nassistant\none\nuser\nr\nassistant\n"
    assert batch.expected == (("two",),) and (prompt == TOKENIZER.placeholder("image")).sum() == 2


def test_texts_under_answers_are_right_as_well(tmp_path, make_config):
    def of(*samples):
        turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "two"}]
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps({"messages": turns, **each}) + "\n" for each in samples))
        (batch,) = batches(make_config(path, eval=str(path), max_bad_share=1.0))
        return path, batch

    path, batch = of({}, {"answers": ["2", "II"]}, {"answers": "2"}, {"answers": [2]})
    assert batch.expected == (("two",), ("two", "2", "II"), ("two", "2"))
    assert batch.where == tuple(f"{path}:{line}" for line in (1, 2, 3))
    assert "'answers' is [2]; give a list of the texts" in batch.bad[0]


def test_samples_for_the_loss_come_one_a_row_and_those_that_fill_a_batch_weigh_nothing(make_dataset, make_config):
    path = make_dataset(6, truncated=[1])
    loader = make_loader(make_config(path, eval=str(path), max_shift=1))
    found = list(loss_batches(loader, loader.held_out, 4))
    assert [batch.arrays["llm"]["tokens"].shape[0] for batch in found] == [4, 4]
    weights = [batch.arrays["llm"]["loss_weights"] for batch in found]
    assert [int((each.sum(1) > 0).sum()) for each in weights] == [4, 1]
    assert [reason.split(": ")[0] for batch in found for reason in batch.left_out] == [f"{path}:2"]
    single = loader.collate([[loader.load(loader.held_out, 5)]], loader.processor.capacity)
    for module, ports in single.items():
        for port, array in ports.items():
            np.testing.assert_array_equal(found[1].arrays[module][port][0], array[0])
