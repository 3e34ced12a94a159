import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetjax.models.parts.groups import Group, Single, find_groups, layer_places

OMNI = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


def shown(items):
    """Groups as text: "(*(EM)3)4" is *EMEMEM four times."""
    return "".join(item.letter if isinstance(item, Single) else f"({shown(item.unit)}){item.repeats}" for item in items)


def singles(items):
    return sum(1 if isinstance(item, Single) else singles(item.unit) for item in items)


@functools.cache
def fewest_singles(pattern):
    """By cutting the pattern in two at every place, and folding it wherever it repeats itself."""
    if len(pattern) == 1:
        return 1
    best = min(fewest_singles(pattern[:i]) + fewest_singles(pattern[i:]) for i in range(1, len(pattern)))
    for size in range(1, len(pattern) // 2 + 1):
        if len(pattern) % size == 0 and pattern[:size] * (len(pattern) // size) == pattern:
            best = min(best, fewest_singles(pattern[:size]))
    return best


@settings(max_examples=80, deadline=None)
@given(st.text("ME*", min_size=1, max_size=14))
def test_groups_write_the_pattern_with_the_fewest_singles(pattern):
    groups = find_groups(pattern)
    assert "".join(group.letters * group.repeats for group in groups) == pattern
    assert singles(groups) == fewest_singles(pattern)
    assert all(isinstance(group, Group) for group in groups)
    places = layer_places(pattern)
    assert "".join(place.letter for place in places) == pattern
    assert len({(place.path, place.index) for place in places}) == len(pattern)
    assert all(len(place.index) == place.path.count("group") for place in places)


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (OMNI, "(M)1(EM)2(*(EM)3)4(*(EM)4)2(E)1"),
        ("MMMM", "(M)4"),
        ("MEM*EMEM*E", "(MEM*E)2"),
        ("M*E", "(M)1(*)1(E)1"),
    ],
)
def test_of_equal_ones_there_are_the_most_rows(pattern, groups):
    assert shown(find_groups(pattern)) == groups


def test_a_layer_of_a_nested_group_has_an_index_for_each_group():
    place = layer_places(OMNI)[5 + 7 + 2]
    assert (place.letter, place.path, place.index) == ("M", "group2/group1/layer1", (1, 0))
