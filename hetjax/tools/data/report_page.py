"""The page that `hetjax data inspect --out` writes."""

from __future__ import annotations

import collections
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from hetjax.config.run_config import TrainConfig
from hetjax.data import SampleLoader
from hetjax.tools.data.batch_statistics import batch_statistics
from hetjax.tools.data.histograms import draw_histograms
from hetjax.tools.data.measured import Measured, measure
from hetjax.tools.data.media_pictures import Picture, png_uri

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}: data</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } th { border-bottom: 1px solid #999; font-weight: 600 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; padding: .8em; font-size: 13px }
mark { background: #b9e3b4 } .error { color: #b00020 } figure { display: inline-block; margin: .3em; font-size: 12px }
figcaption { text-align: center; color: #666 } img { max-width: 100% }
</style></head><body>
<h1>{{ name }}: data</h1>
<p>{{ "{:,}".format(found.samples) }} of {{ "{:,}".format(found.of) }} samples that an epoch draws were made as in training.
{{ found.bad | length }} of them ({{ "%.2f" | format(100 * found.bad | length / found.samples) }} %) are skipped.</p>
{% if reasons %}<h2>Skipped, and why</h2><table><tr><th>reason</th><th>samples</th></tr>
{% for reason in reasons %}<tr><td>{{ reason.words }}<br><small>{{ reason.first }}</small></td>
<td>{{ reason.count }}</td></tr>
{% endfor %}</table>{% endif %}
{% if found.amounts %}<h2>What samples take</h2><table>
<tr><th></th><th>samples with some</th><th>mean</th><th>half below</th><th>99 % below</th><th>most</th><th>in a row</th></tr>
{% for amount, each in amounts %}<tr><td>{{ amount.words }}</td><td>{{ "%.0f" | format(100 * each.some) }} %</td>
<td>{{ "%.1f" | format(each.mean) }}</td><td>{{ each.p50 }}</td><td>{{ each.p99 }}</td><td>{{ each.max }}</td>
<td>{{ each.has }}</td></tr>
{% endfor %}</table><img alt="histograms of what samples take" src="{{ histograms }}">{% endif %}
{% if batches %}<h2>Batches</h2><table>
<tr><td>rows of a batch</td><td>{{ batch_size }}</td></tr>
<tr><td>samples a row</td><td>{{ "%.2f" | format(batches.samples_per_row) }}</td></tr>
{% for words, share in batches.padding.items() %}<tr><td>padding of {{ words }}</td>
<td>{{ "%.1f" | format(100 * share) }} %</td></tr>
{% endfor %}<tr><td>packing efficiency (tokens)</td>
<td>{{ "%.1f" | format(100 - 100 * batches.padding.tokens) }} %</td></tr>
{% for module, ratio in batches.imbalance.items() %}<tr><td>fullest shard of {{ module }} against the mean</td>
<td>{{ "%.2f" | format(ratio) }}</td></tr>
{% endfor %}</table><p><small>An estimate over {{ batches.batches }} batches of the inspected samples: rows of the
largest shape, filled from all of these samples; shards are cut from whole batches as rows come, and their load is counted
in rows of media, not by cost and without balancing.</small></p>{% endif %}
<h2>Samples</h2><p>Green is what the loss counts.</p>
{% for sample in samples %}
{% if sample.error %}<p class="error">{{ sample.error }}</p>
{% else %}<h3>{{ sample.where }}</h3><p>{{ sample.tokens }} tokens, {{ sample.counted }} of them in the loss</p>
{% for medium in sample.media %}<p>{{ medium.words }}</p>{% for picture in medium.pictures %}
<figure><img alt="{{ picture.words }}" src="{{ picture.uri }}"><figcaption>{{ picture.words }}</figcaption></figure>
{% endfor %}{% endfor %}
<pre>{% for piece, counts in sample.text %}{% if counts %}<mark>{{ piece }}</mark>{% else %}{{ piece }}{% endif %}{% endfor %}</pre>
{% endif %}{% endfor %}
</body></html>
"""  # noqa: E501


class ShownMedium(NamedTuple):
    """A medium on the page: what it is, and pictures of it."""

    words: str
    pictures: Sequence[Picture]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample on the page; see `hetjax.tools.data.inspect_data.InspectedSample`."""

    where: str
    text: Sequence[tuple[str, bool]]
    tokens: int
    counted: int
    media: Sequence[ShownMedium]
    error: str | None


class Reason(NamedTuple):
    """Why samples are skipped: in words without names and numbers, how many, and the first of them."""

    words: str
    count: int
    first: str


def write_page(
    path: Path, config: TrainConfig, loader: SampleLoader, source: str, samples: Sequence[ShownSample], of: int
) -> None:
    """Write the page, with figures of the first `of` samples of an epoch."""
    found = measure(config, source, of, whole=False)
    batches = batch_statistics(loader, found.uses, config.placement)
    reasons = reasons_of(found.bad)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(_PAGE).render(
        name=config.name,
        found=found,
        reasons=reasons,
        amounts=[(amount, amount.summary()) for amount in found.amounts.values()],
        histograms=_histograms(found) if found.amounts else None,
        batches=batches,
        batch_size=config.data.batch_size,
        samples=[
            dataclasses.replace(sample, text=[(_short(text), counts) for text, counts in sample.text])
            for sample in samples
        ],
    )
    path.write_text(page, encoding="utf-8")


def reasons_of(bad: Sequence[str]) -> list[Reason]:
    """Return why samples are skipped, the most frequent reason first; names, places and numbers do not tell apart."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for reason in bad:
        words = re.sub(r"^\S.*?:\d+( \([^)]*\))?: ", "", reason)
        words = re.sub(r"'[^']*'", "'…'", words)
        groups[re.sub(r"\d[\d,.]*", "N", words)].append(reason)
    found = [Reason(words, len(own), own[0]) for words, own in groups.items()]
    return sorted(found, key=lambda reason: -reason.count)


def _histograms(found: Measured) -> str:
    target = io.BytesIO()
    draw_histograms(found.amounts, {}, target)
    return png_uri(target.getvalue())


def _short(text: str) -> str:
    """Return a text in which what is repeated many times (placeholders) is shown once, with how often it stands."""
    return re.sub(r"(<[^<>]{1,40}>)\1{4,}", lambda found: f"{found[1]} x {len(found[0]) // len(found[1])}", text)
