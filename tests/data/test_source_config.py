import pytest

from hetjax.config.run_config import load_config
from hetjax.data import DataConfig, SourceConfig
from hetjax.data.held_out_sets import held_out_sets
from hetjax.data.source_config import EvalShare, train_sources
from hetjax.errors import ConfigError
from tests.harness.paths import ROOT


def test_a_path_a_source_and_a_list_of_both():
    assert train_sources("a.jsonl") == (SourceConfig(path="a.jsonl"),)
    assert train_sources({"path": "a", "split": "train"})[0].label == "a (train)"
    two = train_sources([{"path": "a", "weight": 0.5}, {"path": "b", "weight": 2, "columns": {"messages": "chat"}}])
    assert [(source.label, source.weight) for source in two] == [("a", 0.5), ("b", 2)]
    assert [source.path for source in train_sources(["a", SourceConfig(path="b", repeat=3)])] == ["a", "b"]


def test_held_out_samples_are_one_set_or_several_by_name():
    def only(given):
        (found,) = held_out_sets(given)
        assert (found.name, found.prefix) == (None, "eval")
        return found

    assert only({"share": 0.01}).samples == EvalShare(share=0.01)
    assert held_out_sets(None) == ()
    assert only(["a", "b"]).samples[1].path == "b"
    assert only({"path": "a", "split": "test"}).samples[0].label == "a (test)"
    assert only({"sources": ["a"], "metrics": ["wer"]}).metrics == ("wer",)
    speech, documents, rest = held_out_sets(
        {
            "speech": {"sources": {"path": "s"}, "metrics": ["wer"], "loss": False},
            "documents": ["a", "b"],
            "rest": {"share": 0.1},
        }
    )
    assert (speech.prefix, speech.metrics, speech.loss) == ("eval/speech", ("wer",), False)
    assert (documents.name, documents.metrics, documents.loss) == ("documents", None, None)
    assert rest.samples == EvalShare(share=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "is an empty mapping"),
        ({"a": {"share": 0.1}, "b": {"share": 0.2}}, "a and b are both a share of the training samples"),
        ({"split": "test"}, "names a set 'split'; give it a name"),
        ({"a/b": "c"}, "names a set 'a/b'; give it a name"),
        ({3: "c"}, "names a set 3; give it a name"),
        ({"a": {"sources": "b", "metric": ["wer"]}}, r"data\.eval\.a has no setting 'metric'; beside sources"),
        ({"a": {"sources": "b", "metrics": "wer"}}, r"data\.eval\.a\.metrics is 'wer'; give a list of names"),
        ({"a": {"sources": "b", "loss": "no"}}, r"data\.eval\.a\.loss is 'no'; give true or false"),
        ({"a": {"path": "b", "weight": 1}}, r"data\.eval\.a: source 'b' has a weight"),
    ],
)
def test_sets_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(train="a", eval=given, seq_len=8, batch_size=1)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"pth": "a"}, r"data\.train has no setting 'pth' \(did you mean 'path'\?\); it has path, name, weight"),
        ([{"path": "a", "wieght": 1}], r"data\.train\[0\] has no setting 'wieght' \(did you mean 'weight'"),
        ([], r"data\.train is an empty list"),
        ([3], r"data\.train\[0\] must be a path or settings of a source"),
        ({"weight": 1}, r"data\.train needs a path"),
        (["a", {"path": "b", "weight": 1}], "source 'a' has no weight, but 'b' has"),
        ({"path": "a", "weight": 1, "repeat": 2}, "has a weight and a repeat; give one of them"),
        ([{"path": "a", "weight": 0}], "all weights are 0"),
        ({"path": "a", "weight": -1}, r"data\.train\.weight is -1; give a number of 0 or more"),
        ({"path": "a", "repeat": 0}, r"data\.train\.repeat is 0; give a number above 0"),
        ({"path": "a", "split": 3}, r"data\.train\.split is 3; give a text"),
        (["a", "a"], "has 'a' twice; give one a `name`"),
        ({"path": "a", "columns": {"mesages": "x"}}, r"columns has the key 'mesages'.*\(did you mean 'messages'\?\)"),
        ({"path": "a", "columns": {"messages": 3}}, r"columns\.messages must be the name of a column"),
        ({"path": "a", "columns": "messages"}, "must map keys to columns"),
    ],
)
def test_a_setting_of_a_source_that_cannot_be_is_refused_with_the_likely_name(train, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(train=train, seq_len=8, batch_size=1)


@pytest.mark.parametrize(
    "given", [{"share": 0}, {"share": 1}, {"share": True}, {"share": 0.1, "path": "a"}, {"share": "x"}]
)
def test_a_share_that_cannot_be_is_refused(given):
    with pytest.raises(ConfigError, match=r"data\.eval is .*give \{share: 0\.01\}"):
        DataConfig(train="a", eval=given, seq_len=8, batch_size=1)


def test_evaluation_reads_each_sample_once():
    with pytest.raises(ConfigError, match=r"data\.eval: source 'a' has a weight or a repeat"):
        DataConfig(train="a", eval={"path": "a", "weight": 1}, seq_len=8, batch_size=1)


def test_sources_come_from_yaml_and_go_into_the_resolved_settings(tmp_path):
    text = (ROOT / "configs" / "digits.yaml").read_text()
    sources = "[{path: a.jsonl, weight: 2}, {path: b, weight: 1, split: train, columns: {messages: chat}}]"
    lines = [
        f"  train: {sources}"
        if line.startswith("  train:")
        else "  eval: {share: 0.1}"
        if line.startswith("  eval:")
        else line
        for line in text.splitlines()
    ]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    config, resolved = load_config(["--config", str(tmp_path / "run.yaml")])
    assert train_sources(config.data.train)[1].columns == {"messages": "chat"}
    (tmp_path / "resolved.yaml").write_text(resolved)
    assert load_config(["--config", str(tmp_path / "resolved.yaml")])[0].data == config.data
    given = ["--data.train", sources, "--data.eval", "{share: 0.1}"]
    assert load_config(["--config", "configs/digits.yaml", *given])[0].data == config.data
    assert load_config(["--config", "configs/digits.yaml", "--data.train", "c.jsonl"])[0].data.train == "c.jsonl"
    with pytest.raises(ConfigError, match=r"data\.train\[0\] has no setting 'wieght' \(did you mean 'weight'"):
        load_config(["--config", "configs/digits.yaml", "--data.train", "[{path: a, wieght: 2}]"])
