"""Templates that compute without end or measure are refused, soon and in little memory."""

import resource
import time

import pytest

from hetjax.data.chat import ChatTemplate, template_limits
from hetjax.errors import DataError

REFUSED = r"refuses the messages: (it|a format) .*(more|indents)"
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(90) %}{% set ns.x = OP %}{% endfor %}{{ ns.x }}"
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops without a word in a macro": (
        "{% macro f() %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endmacro %}"
        "{{ f() }}"
    ),
    "calls that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "text in a loop": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "~ that doubles": DOUBLE.replace("OP", "ns.x ~ ns.x"),
    "+ that doubles": DOUBLE.replace("OP", "ns.x + ns.x"),
    "* that doubles": DOUBLE.replace("OP", "ns.x * 2"),
    "% that doubles": DOUBLE.replace("OP", "'%s%s' % (ns.x, ns.x)"),
    "format that doubles": DOUBLE.replace("OP", "'{0}{0}'.format(ns.x)"),
    "the filter format": DOUBLE.replace("OP", "'%s%s'|format(ns.x, ns.x)"),
    "replace that doubles": DOUBLE.replace("OP", "ns.x.replace('a', 'aa')").replace("'ab'", "'aa'"),
    "the filter replace": DOUBLE.replace("OP", "ns.x|replace('a', 'aa')").replace("'ab'", "'aa'"),
    "join that doubles": DOUBLE.replace("OP", "ns.x.join(['', '', ''])"),
    "the filter join": DOUBLE.replace("OP", "['', '', '']|join(ns.x)"),
    "lists that double": DOUBLE.replace("OP", "ns.x + ns.x").replace("'ab'", "[1]"),
    "lists of lists": DOUBLE.replace("OP", "[ns.x, ns.x]"),
    "lists of lists as JSON": DOUBLE.replace("OP", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x|tojson }}"),
    "lists of lists joined to a text": DOUBLE.replace("OP", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x ~ '' }}"),
    "lists of lists in a format": DOUBLE.replace("OP", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ '%s' % ns.x }}"),
    "squares of numbers": DOUBLE.replace("OP", "ns.x * ns.x").replace("'ab'", "9"),
    "a text times a number": "{{ 'a' * 10**10 }}",
    "a number times a list": "{{ 10**10 * [1] }}",
    "a power": "{{ 10**(10**10) }}",
    "wide centre": "{{ 'a'|center(10**10) }}",
    "wide method": "{{ 'a'.ljust(10**10) }}",
    "tabs": "{{ '\t'.expandtabs(10**10) }}",
    "indent": "{{ 'a\n'|indent(10**10) }}",
    "JSON with indent": "{{ [1]|tojson(indent=10**10) }}",
    "wide format": "{{ '%9999999999d' % 1 }}",
    "wide format of an argument": "{{ '%*d' % (10**10, 1) }}",
    "wide braces": "{{ '{:9999999999}'.format(1) }}",
    "wide braces of an argument": "{{ '{:{}}'.format(1, 10**10) }}",
    "wide braces of a text": "{{ '{:{}}'.format(1, '9999999999') }}",
    "wide filter": "{{ '%9999999999d'|format(1) }}",
    "a wide date": "{{ strftime_now('%9999999999Y') }}",
    "a filter by name": "{{ [['a']]|map('center', 10**10)|list }}",
    "bytes": "{{ ('a'.encode() * 10**10)|length }}",
    "bytes of a number": "{{ (1).to_bytes(10**10, 'big')|length }}",
    "tabs by name": "{{ '\\t'.expandtabs(tabsize=10**10) }}",
    "a name in a format, often": "{{ ('%(a)s' * 3000) % {'a': 'x' * 100000} }}",
    "namespaces of lists": DOUBLE.replace("OP", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns }}"),
    "namespaces of namespaces": DOUBLE.replace("OP", "namespace(a=ns.x, b=ns.x)"),
    "lists that are equal": DOUBLE.replace("OP", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x == [ns.x] }}"),
    "rounds that a condition leaves out": (
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}"
    ),
    "lists again and again": (
        "{% set x = range(4000)|list %}{% for i in range(99999) %}{% set y = x + [1] %}{% endfor %}"
    ),
    "texts that are looked at": (
        "{% set x = 'a' * 100000 %}{% for i in range(99999) %}{% set y = x.count('b') %}{% endfor %}"
    ),
    "rows": "{{ [1]|batch(10**10, 'x')|list }}",
}  # fmt: skip


@pytest.fixture
def small_limits(monkeypatch):
    """Limits that a test comes to soon."""
    for name, limit in (("STEPS", 20_000), ("CHARACTERS", 1 << 20), ("ALL_CHARACTERS", 1 << 23), ("ITEMS", 1 << 12)):
        monkeypatch.setattr(template_limits, name, limit)


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_or_measure_is_refused(small_limits, name):
    with pytest.raises(DataError, match=REFUSED):
        ChatTemplate(ENDLESS[name]).render(MESSAGES, add_generation_prompt=False)


@pytest.mark.parametrize("name", ["calls that double", "~ that doubles", "lists of lists"])
def test_that_takes_seconds_and_little_memory(name):
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    with pytest.raises(DataError, match=REFUSED):
        ChatTemplate(ENDLESS[name]).render(MESSAGES, add_generation_prompt=False)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert time.process_time() - start < 10
    assert after.ru_maxrss - before.ru_maxrss < 1 << 20  # KiB


def test_division_by_zero_and_other_faults_are_refusals():
    for source in (
        "{{ 1 / 0 }}",
        "{{ 1 // 0 }}",
        "{{ 1 % 0 }}",
        "{{ none.x.y }}",
        "{{ 'a' + 1 }}",
        "{{ [] | first.x }}",
    ):
        with pytest.raises(DataError, match="chat template"):
            ChatTemplate(source).render(MESSAGES, add_generation_prompt=False)


def test_long_chats_are_rendered():
    messages = [MESSAGES[i % 2] | {"content": "x" * 1000} for i in range(5000)]
    text = ChatTemplate().render(messages, add_generation_prompt=True)
    assert str(text.text).count("<|im_start|>") == 5001


def test_a_loop_variable_cannot_take_the_place_of_what_counts():
    source = "{% set step = 1 %}{% set joined = 2 %}{% for x in [1, 2] %}{{ x ~ step ~ joined }}{% endfor %}"
    assert ChatTemplate(source).render(MESSAGES, add_generation_prompt=False).text == "112212"


def test_ordinary_texts_are_no_formats():
    """Numbers and stars in what people write are no widths."""
    content = "call 0123456789 now, **100000** times: {} %s"
    messages = [{"role": "user", "content": content}]
    source = (
        "{{ '**User**: %s' % messages[0].content }}{{ '* id: {}'.format(123456789) }}"
        "{{ 'limit 100000: {}'.format('a') }}{{ messages|map(attribute='content')|join('|') }}"
        "{{ {'a': 1}.items()|list|length }}{{ '-'.join({'a': 1}.keys()) }}"
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}{% endfor %}"
        "{{ messages|tojson(indent=2)|length > 9 }}"
    )
    expected = f"**User**: {content}* id: 123456789limit 100000: a{content}1a1True"
    assert ChatTemplate(source).render(messages, add_generation_prompt=False).text == expected
