import pytest

from hetjax.errors import ConfigError
from hetjax.schedule import Costs, Kind
from hetjax.tools.given_costs import GivenCosts, KindCosts


def test_kinds_have_the_ratios_of_equal_stages_unless_given():
    assert KindCosts().costs() == Costs(update=0)
    assert KindCosts(forward=3, transfer=0.5).costs() == Costs(forward=3, transfer=0.5, update=0)


def test_exceptions_are_named_by_stage_or_edge_and_kind():
    given = GivenCosts(of={"llm.0 backward_input": 2, "vision.tokens->llm.0.image_tokens transfer": 0.1})
    assert given.costs().of == {
        ("llm.0", Kind.BACKWARD_INPUT): 2,
        ("vision.tokens->llm.0.image_tokens", Kind.TRANSFER): 0.1,
    }


@pytest.mark.parametrize("text", ["forward", "llm", "llm forwards", "llm.forward", " forward"])
def test_an_exception_without_a_kind_is_refused(text):
    with pytest.raises(ConfigError, match=f"costs.of has an entry '{text}'; write the name of a stage or an edge"):
        GivenCosts(of={text: 1.0}).costs()
