import jax
import numpy as np
import optax
import pytest

import hetjax
from hetjax.data import EvalBatch, load_tokenizer
from hetjax.errors import DataError
from hetjax.evaluation.answer_prompts import Group, answer_prompts
from hetjax.generation.answer_text import answer_text
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from hetjax.metrics.registry import find_metrics
from hetjax.models import DecoderConfig, LanguageModel
from tests.harness.models.generate import generate

TOKENIZER = load_tokenizer(None)
METRICS = find_metrics(["exact_match", "wer"], "test")
EOS, PAD = TOKENIZER.eos, TOKENIZER.pad


def eval_batch(prompts, answers, *, size=None, bad=(), groups=()):
    """Prompts as the data pipeline gives them: padded at the end, the last one repeated up to `size`."""
    rows = [TOKENIZER.encode(prompt) for prompt in prompts]
    rows += [rows[-1]] * ((size or len(rows)) - len(rows))
    longest = max(map(len, rows))
    return EvalBatch(
        arrays={"llm": {"tokens": np.array([row + [PAD] * (longest - len(row)) for row in rows], np.int32)}},
        lengths=np.array([len(row) for row in rows], np.int32),
        expected=tuple((answer,) for answer in answers),
        where=tuple(f"x.jsonl:{i + 1}" for i in range(len(answers))),
        count=len(answers),
        bad=tuple(bad),
        groups=tuple(groups),
    )


class Scripted:
    """Stands in for a generator: emits the ids it was given, batch by batch, and notes the order of events."""

    sink = "llm"

    def __init__(self, *batches):
        width = max(len(row) for batch in batches for row in batch) if batches else 0
        self.left = [np.array([row + [EOS] * (width - len(row)) for row in batch]) for batch in batches]
        self.events, self.seeds = [], []

    def dispatch(self, weights, batch, lengths, seed):
        self.events.append("dispatch")
        self.seeds.append(seed)
        ids, events = self.left.pop(0), self.events

        class Pending:
            def read(self):
                events.append("read")
                return ids

        return Pending()


def text(string):
    return TOKENIZER.encode(string)


def answered(generator, batches, weights=None):
    return answer_prompts(generator, weights, batches, TOKENIZER, METRICS)


def test_an_answer_counts_when_it_equals_the_expected_text_up_to_eos():
    cases = [
        ("7", [*text("7"), EOS, *text("junk")], True),
        ("7", text("7"), True),  # the tokens ran out before an eos
        ("7", [*text(" 7\n"), EOS], True),
        (" 7", [*text("7"), EOS], True),
        ("7", [*text("77"), EOS], False),
        ("7", [EOS, *text("7")], False),
        ("Seven", [*text("seven"), EOS], False),
    ]
    batch = eval_batch(["?"] * len(cases), [expected for expected, _, _ in cases])
    result = answered(Scripted([ids for _, ids, _ in cases]), [batch])
    rights = [sample.measures["exact_match"].value for sample in result.answered]
    assert rights == [right for _, _, right in cases]
    assert result.scores["exact_match"] == 4 / 7 and result.count == 7


def test_answers_are_counted_by_group_over_all_batches():
    batches = [
        eval_batch(["?"] * 3, ["1", "2", "3"], groups=["read", "count", "read"]),
        eval_batch(["?"] * 2, ["4", "5"], size=3, groups=["count", "read"]),
    ]
    said = [[text("1"), text("2"), text("-")], [text("-"), text("5"), text("5")]]
    result = answered(Scripted(*said), batches)
    want = {"count": Group({"exact_match": 0.5, "wer": 0.5}, 2), "read": Group({"exact_match": 2 / 3, "wer": 1 / 3}, 3)}
    assert list(result.groups.items()) == list(want.items())
    assert result.scores == {"exact_match": 3 / 5, "wer": 2 / 5}


def test_repeated_rows_of_a_last_batch_do_not_count():
    batches = [
        eval_batch(["a", "b"], ["1", "2"], bad=["x.jsonl:3: no image"]),
        eval_batch(["c"], ["3"], size=2, bad=["x.jsonl:5: empty"]),
    ]
    ids = [[text("1"), text("2")], [text("3"), text("3")]]
    result = answered(Scripted(*ids), batches)
    assert (result.scores["exact_match"], result.count) == (1.0, 3)
    assert result.bad == ("x.jsonl:3: no image", "x.jsonl:5: empty")
    first = result.answered[0]
    assert (first.where, first.prompt, first.expected, first.answer) == ("x.jsonl:1", "a", ("1",), "1")


def test_the_next_batch_is_under_way_before_an_answer_is_read():
    scripted = Scripted([text("1")], [text("1")], [text("1")])
    answered(scripted, [eval_batch(["a"], ["1"])] * 3)
    assert scripted.events == ["dispatch", "dispatch", "read", "dispatch", "read", "read"]
    assert scripted.seeds == [0, 1, 2], "drawn answers of two batches are not drawn alike"


def test_no_sample_is_an_error():
    with pytest.raises(DataError, match="no held-out sample"):
        answered(Scripted(), [])


def test_accuracy_of_a_model_on_a_mesh():
    config = DecoderConfig(
        vocab_size=TOKENIZER.vocab_size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16
    )
    graph = hetjax.ModuleGraph({"llm": lambda rngs: LanguageModel(config, rngs=rngs)})
    trainer = hetjax.Trainer(graph, Placement({"llm": Layout(devices="0-1", data=2)}), optimizer=optax.sgd(0.1))
    prompts = ["one", "three", "two"]
    batch = eval_batch(prompts, ["?"] * 3)
    tokens, lengths = batch.arrays["llm"]["tokens"], batch.lengths

    @jax.jit
    def on_one_device(seed):
        return generate(graph.build("llm", seed), tokens, lengths, max_new_tokens=3, stop_token=EOS)

    said = [answer_text(row, TOKENIZER).strip() for row in np.asarray(on_one_device(0))]
    batch = eval_batch(prompts, [said[0], "not this", said[2]])
    generator = Generator(trainer, max_new_tokens=3, stop_token=EOS)
    result = answered(generator, [batch], generator.prepare(trainer.init(seed=0)))
    assert result.scores["exact_match"] == pytest.approx(2 / 3)
    assert [sample.answer for sample in result.answered] == said
    assert [sample.prompt for sample in result.answered] == prompts
