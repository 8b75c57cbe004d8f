"""The chart is well-formed and complete and has the right Pareto front."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from anomseg_ros.bench.chart import Goal, pareto_chart, pareto_front
from anomseg_ros.bench.figures import FORMAT_VERSION, Accuracy, BenchReport, Entry
from anomseg_ros.bench.power import Power

SVG = "{http://www.w3.org/2000/svg}"


def entry(title: str, latency_ms: float, value: float | None, metric: str = "auprc") -> Entry:
    accuracy = None if value is None else Accuracy(value, metric, "road_anomaly_21", "evaluation")
    times = {"p50": latency_ms, "p95": 1.2 * latency_ms, "p99": 1.3 * latency_ms}
    rate = 1e3 / latency_ms
    base = Entry(
        title, title.split(",")[0], "onnxruntime", "onnxruntime:cpu", 1, 64, 128, "fp32", "void", times, rate, 9
    )
    return replace(base, accuracy=accuracy)


ENTRIES = (
    entry("fast, 1 thread", 10, 0.10),
    entry("beaten, 1 thread", 30, 0.08),
    entry("good <b>&, 1 thread", 40, 0.30),
    entry("unknown, 1 thread", 5, None),
)


def draw_chart(entries: tuple[Entry, ...], **options: object) -> ElementTree.Element:
    report = BenchReport(FORMAT_VERSION, entries, machine={"cpu": "A & B <1>", "cores": 2})
    return ElementTree.fromstring(pareto_chart(report, **options))  # type: ignore[arg-type]


def titles(root: ElementTree.Element) -> list[str]:
    return [group.get("data-entry", "") for group in root.iter(f"{SVG}g") if group.get("data-entry")]


def test_chart_draws_and_lists_every_candidate() -> None:
    root = draw_chart(ENTRIES)
    assert titles(root) == [one.title for one in ENTRIES]
    said = [node.text for node in root.iter(f"{SVG}text")]
    for one in ENTRIES:
        assert one.title in said
    assert "30.00 %" in said and "measured on A & B <1>, 2 core(s)" in said


def test_pareto_front_has_the_undominated_candidates() -> None:
    assert [one.name for one in pareto_front(ENTRIES[:3])] == ["fast", "good <b>&"]
    same = (entry("slower, 1", 12, 0.1), entry("faster, 1", 10, 0.1))
    assert [one.name for one in pareto_front(same)] == ["faster"]


def test_pareto_front_minimises_the_false_positive_rate() -> None:
    front = pareto_front([entry("a", 10, 0.2, "fpr95"), entry("b", 20, 0.5, "fpr95"), entry("c", 30, 0.1, "fpr95")])
    assert [one.name for one in front] == ["a", "c"]


def test_published_points_are_of_the_same_dataset() -> None:
    def published(root: ElementTree.Element) -> list[ElementTree.Element]:
        return [group for group in root.iter(f"{SVG}g") if group.get("data-published")]

    assert len(published(draw_chart(ENTRIES, published=True))) == 27
    for group in published(draw_chart(ENTRIES, published=True)):
        said = group.findtext(f"{SVG}title") or ""
        assert group.get("class") == "published" and said.startswith("published: ")
    assert published(draw_chart(ENTRIES)) == []
    assert published(draw_chart((entry("a", 10, 0.4, "miou"),), published=True)) == []


def test_candidates_without_accuracy_are_drawn() -> None:
    root = draw_chart((entry("a", 10, None), entry("b", 10, None)))
    assert titles(root) == ["a", "b"]


@pytest.mark.parametrize(
    "goal", [Goal(max_latency_ms=25.0, chosen="fast, 1 thread", percentile="p95"), Goal(min_accuracy=0.2)]
)
def test_goal_is_drawn_as_a_line(goal: Goal) -> None:
    root = draw_chart(ENTRIES, goal=goal)
    assert len([line for line in root.iter(f"{SVG}line") if line.get("class") == "limit"]) == 1
    chosen = [ring for ring in root.iter(f"{SVG}circle") if ring.get("class") == "chosen"]
    assert bool(chosen) == (goal.chosen is not None)


def test_points_are_inside_the_chart() -> None:
    root = draw_chart((*ENTRIES, entry("slow", 9000, 0.9)))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx", -1)) < width and 0 < float(circle.get("cy", -1)) < height


def test_chart_is_self_contained_and_has_dark_colours() -> None:
    document = pareto_chart(BenchReport(FORMAT_VERSION, ENTRIES))
    assert "prefers-color-scheme: dark" in document
    assert document.count("http") == 1 and "href" not in document and "url(" not in document


def test_tooltips_have_power_where_it_was_measured() -> None:
    power = Power(7.25, 181.3, "ina3221", "VDD_IN", 9, 1.0, 40)
    root = draw_chart(
        (replace(ENTRIES[0], power=power), replace(ENTRIES[1], power=Power(reason="no sensor")), ENTRIES[2])
    )
    said = [node.text or "" for node in root.iter(f"{SVG}title")]
    assert sum(text.endswith("p50 10.0 ms, 7.2 W of VDD_IN, 181.3 mJ per frame, AuPRC 10.00 %") for text in said) == 1
    assert sum("W of" in text for text in said) == 1
