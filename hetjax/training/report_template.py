"""The page of a run, for jinja2."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text { text-align: left } th { border-bottom: 1px solid #999; font-weight: 600 }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 28em } img { max-width: 100% }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; padding: .8em; font-size: 13px }
.right { background: #e3f2e1 } small { color: #666 }
</style></head><body>
<h1>{{ name }}</h1>
<p>{{ last.step }} of {{ steps }} steps{% if best %}; best checkpoint: {{ best }}{% endif %}.</p>
<table><tr><th>of the last step</th><th></th></tr>
{% for words, value in headline %}<tr><td>{{ words }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Curves</h2><img alt="curves of the metrics" src="{{ curves }}">
{% if sets %}<h2>Samples answered</h2>
{% for title, metrics, answered in sets %}<h3>{{ title }}</h3>
<table><tr><th>sample</th><th>prompt</th><th>expected</th><th>answer</th>
{% for metric in metrics %}<th>{{ metric }}</th>{% endfor %}</tr>
{% for each in answered %}<tr><td><small>{{ each.where }}</small></td><td class="text">{{ each.prompt }}</td>
<td class="text">{{ each.expected }}</td><td class="text">{{ each.answer }}</td>
{% for score in each.scores %}<td{% if score.is_right %} class="right"{% endif %}>{{ score.text }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}{% endif %}
<h2>Placement</h2><img alt="which devices every mesh covers" src="{{ placement }}">
<table><tr><th>stage</th><th>mesh</th><th>devices</th><th>parameters</th><th>trained</th><th>state a device</th></tr>
{% for row in stages %}<tr><td>{{ row.stage }}</td><td>{{ row.mesh }}</td><td>{{ row.devices }}</td>
<td>{{ row.parameters }}</td><td>{{ row.trained }}</td><td>{{ row.state }}</td></tr>
{% endfor %}</table>
<h2>Memory</h2><table><tr><th>devices</th><th>stages</th><th>most, by the programs' count</th><th>at</th>
<th>most that was held</th></tr>
{% for row in memory %}<tr><td>{{ row.devices }}</td><td>{{ row.stages }}</td><td>{{ row.counted }}</td>
<td>{{ row.at }}</td><td>{{ row.held }}</td></tr>
{% endfor %}</table>
<h2>Timeline</h2>
<table><tr><th></th><th>makespan</th>{% for module in modules %}<th>idle {{ module }}</th>{% endfor %}</tr>
{% for row in timelines %}<tr><td>{{ row.words }}</td><td>{{ row.makespan }}</td>{% for idle in row.idle %}
<td>{{ idle }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p><small>A simulated step runs each program as soon as its inputs are there. Programs are measured one by one, with a
wait for each: where a whole step takes less than the simulation by these times, that is the cost of waiting; where it
takes more, that of dispatching, and of devices that share a machine.</small></p>
{% for picture in pictures %}<img alt="{{ picture.words }}" src="{{ picture.uri }}">
{% endfor %}{% for note in notes %}<p><small>{{ note }}</small></p>
{% endfor %}<h2>Settings</h2><pre>{{ settings }}</pre>
</body></html>
"""
