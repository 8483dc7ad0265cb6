"""Prometheus' text format 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ig.export.series import Metric, Sample
from ig.output.text import visible
from ig.values import SECOND

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(metrics: Iterable[Metric]) -> bytes:
    """Return the text of all series, in UTF-8; a metric without any has only its description.

    Unprintable characters in label values are escaped as in `ig.output.text.visible`. Numbers of
    histograms are in ns, and shown in seconds.
    """
    lines: list[str] = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {_escaped(metric.text)}\n")
        lines.append(f"# TYPE {metric.name} {metric.kind}\n")
        for sample in metric.samples():
            lines += _histogram(metric, sample) if metric.bounds else _number(metric, sample)
    return "".join(lines).encode("utf-8", "backslashreplace")


def _number(metric: Metric, sample: Sample) -> Iterator[str]:
    yield f"{metric.name}{_labels(_pairs(metric, sample))} {sample.values[0]}\n"


def _histogram(metric: Metric, sample: Sample) -> Iterator[str]:
    pairs, count = _pairs(metric, sample), 0
    for bound, number in zip((*metric.bounds, None), sample.values[:-1], strict=True):
        count += number
        limit = "+Inf" if bound is None else repr(bound / SECOND)
        bucket = _labels([*pairs, f'le="{limit}"'])
        yield f"{metric.name}_bucket{bucket} {count}\n"
    yield f"{metric.name}_sum{_labels(pairs)} {sample.values[-1] / SECOND!r}\n"
    yield f"{metric.name}_count{_labels(pairs)} {count}\n"


def _pairs(metric: Metric, sample: Sample) -> list[str]:
    return [
        f'{name}="{_quoted(value)}"'
        for name, value in zip(metric.labels, sample.labels, strict=True)
    ]


def _labels(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(value: str) -> str:
    return _escaped(visible(value)).replace('"', '\\"')
