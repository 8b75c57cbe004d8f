from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import Browser, chromium
from sample_evaluation import HOSTILE, evaluation, overlays

from anomseg_ros.evaluation.report import write_report
from anomseg_ros.evaluation.report_charts import BOX, MAX_POINTS
from anomseg_ros.evaluation.results import (
    Components,
    Consistency,
    Curves,
    Drive,
    DriveObject,
    DriveSize,
    Evaluation,
    FrameResult,
    Live,
    Result,
    Streaming,
)

BARE = Result("tiny", "synthetic", "msp", "seeds", frames=1, auprc=None, fpr95=None, auroc=None, miou=None)


class Tags(HTMLParser):
    """Collects the tags with attributes and the text of a document, and checks that tags are closed in order."""

    VOID = ("meta", "link", "img", "input", "br", "circle", "rect", "line", "path")

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(document)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and (not kind or kind in (attrs.get("class") or ""))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    write_report(evaluation(), path, overlays())
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def render(results: tuple[Result, ...], folder: Path) -> str:
    write_report(Evaluation(1, results), folder / "r.html")
    return (folder / "r.html").read_text()


def test_report_is_one_file_without_external_addresses(path: Path) -> None:
    assert [other.name for other in path.parent.iterdir()] == ["report.html"]
    document = path.read_text()
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp|WebSocket|import\(", document)
    for tag, attrs in Tags(document).tags:
        source = attrs.get("src") or attrs.get("href")
        assert tag == "script" or source is None or source.startswith(("data:", "#")), (tag, source)


def test_html_in_a_bundle_name_is_escaped(path: Path) -> None:
    document = path.read_text()
    assert HOSTILE not in document and "<img src=x" not in document
    page = Tags(document)
    assert HOSTILE in "".join(page.words)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_html_in_any_text_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>x</script>&'
    frame = FrameResult(evil, 9, 1, 0.5, 0.5, 1.0, 1.0)
    result = replace(
        evaluation().results[0], bundle=evil, dataset=evil, score=evil, protocol=evil, network=evil, precision=evil,
        backend=evil, bundle_sha256=evil, iou={evil: 0.5}, inference_ms={evil: 1.0, "p50": 2.0}, per_frame=(frame,),
    )  # fmt: skip
    write_report(
        Evaluation(1, (result,), created=evil, command=evil, machine={evil: evil}, versions={evil: evil}),
        tmp_path / "r.html",
        {(*result.key, evil): b"\xff\xd8"},
    )
    document = (tmp_path / "r.html").read_text()
    assert "<script>x" not in document
    assert sum(tag == "script" for tag, _ in Tags(document).tags) == 1


def test_summary_marks_the_best_value_of_each_column(path: Path) -> None:
    table = re.search(r'<table class="summary">.*?</table>', path.read_text(), re.S)
    assert table is not None
    marked = re.findall(r'class="[^"]*best[^"]*">([\d.]+)', table[0])
    best = []
    for dataset in ("road_anomaly_21", "road_obstacle_21"):
        results = [result for result in evaluation().results if result.dataset == dataset]
        best += [max(result.auprc or 0 for result in results), min(result.fpr95 or 1 for result in results)]
    mious = [result.miou for result in evaluation().results if result.miou is not None]
    assert sorted(marked) == sorted(f"{100 * value:.2f}" for value in [*best, max(mious)])
    assert table[0].count("Protocol seeds") == 1 and table[0].count("mIoU") == 1


def test_each_miou_is_stated_once(tmp_path: Path) -> None:
    first = replace(BARE, auprc=0.4, fpr95=0.3, miou=0.6543, iou={"road": 0.9, "sky": 0.4086})
    other = replace(first, bundle="large", miou=0.7231, iou={"road": 0.95, "sky": 0.4962})
    document = render(tuple(replace(one, score=name) for one in (first, other) for name in ("msp", "void")), tmp_path)
    for value in ("65.43", "72.31", "40.9", "49.6"):
        assert document.count(f">{value}<") == 1, value
    assert document.count("as above") == 2 and document.count("IoU per class") == 2
    changed = render((first, replace(first, score="void", miou=0.7)), tmp_path)  # of other pixels: both are stated
    assert changed.count("65.43") == changed.count("70.00") == 1


def test_frames_without_a_figure_are_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    first = replace(BARE, auprc=0.4, fpr95=0.3, miou=0.6543, iou={"road": 0.9, "sky": 0.4086})
    without = render((replace(first, auprc=None, fpr95=None, per_frame=(FrameResult("a", 5, 0),)),), tmp_path)
    assert "In the order of the dataset; press" in without and "Worst AuPRC" not in without and "AuPRC –" not in without


def test_times_say_what_is_timed(path: Path) -> None:
    document = path.read_text()
    assert document.count("Time per frame, ms <span>") == 8
    assert document.count("frame to outputs</li>") == document.count("network alone</li>") == 8


def test_each_protocol_has_a_table_and_is_named_in_its_charts(tmp_path: Path) -> None:
    one = evaluation().results[0]
    document = render((one, replace(one, protocol="smiyc")), tmp_path)
    assert re.findall(r"<caption><span>Protocol (\w+)", document) == ["seeds", "smiyc"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", document)
    assert len(captions) == 10 and all("protocol seeds" in c or "protocol smiyc" in c for c in captions)


def test_frames_are_sorted_worst_first_with_their_overlays(path: Path) -> None:
    result = evaluation().results[0]
    table = re.search(r'<table class="frames">.*?</table>', path.read_text(), re.S)
    assert table is not None
    order = re.findall(r'<th scope="row" data-v="(\w+)"', table[0])
    worst = sorted(result.per_frame, key=lambda frame: 2 if frame.auprc is None else frame.auprc)
    assert order == [frame.frame_id for frame in worst]
    assert worst[-1].auprc is None
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', table[0])
    keys = [(*result.key, name) for name in order]
    assert [base64.b64decode(data) for data in pictures] == [overlays()[key] for key in keys]


def test_tables_charts_and_images_have_accessible_names(path: Path) -> None:
    page = Tags(path.read_text())
    assert all(attrs.get("scope") for attrs in page.all("th"))
    charts = [attrs for attrs in page.all("svg") if attrs.get("role") == "img"]
    assert len(charts) == 2 * 2 + 8 * 3 and all(attrs.get("aria-label") for attrs in charts)
    assert all(attrs.get("alt") for attrs in page.all("img")[:-1])
    assert page.tags[0] == ("html", {"lang": "en"})


def test_curves_of_either_direction_are_drawn_equally_and_thinned(tmp_path: Path) -> None:
    recall = tuple(i / 5000 for i in range(5001))
    curves = Curves(
        recall=recall, precision=tuple(1 - r * r for r in recall), fpr=recall, tpr=tuple(r**0.2 for r in recall)
    )
    back = Curves(**{name: getattr(curves, name)[::-1] for name in ("recall", "precision", "fpr", "tpr")})
    one = replace(BARE, auprc=0.6, fpr95=0.1, curves=curves)
    forth, reverse = render((one,), tmp_path), render((replace(one, curves=back),), tmp_path)
    assert curves_drawn(forth) == curves_drawn(reverse)
    for drawn, (first, last) in zip(curves_drawn(forth), (((0, 1), (1, 0)), ((0, 0), (1, 1))), strict=True):
        assert drawn[0] == pytest.approx(first, abs=0.002) and drawn[-1] == pytest.approx(last, abs=0.002)
        assert MAX_POINTS / 2 < len({x for x, _ in drawn}) <= MAX_POINTS


def test_precision_is_not_interpolated_between_thresholds(tmp_path: Path) -> None:
    curves = Curves(recall=(0.0, 0.5, 1.0), precision=(1.0, 0.2, 0.1))
    (drawn,) = curves_drawn(render((replace(BARE, auprc=0.15, curves=curves),), tmp_path))
    expected = [(0, 0.2), (0, 0.2), (0.5, 0.2), (0.5, 0.1), (1, 0.1)]
    assert [coordinate for point in drawn for coordinate in point] == pytest.approx(
        [coordinate for point in expected for coordinate in point], abs=0.001
    )


def test_precision_at_recall_0_is_no_stroke_from_top_to_bottom(tmp_path: Path) -> None:
    noise = tuple((i / 100000, float(i % 2)) for i in range(200))  # up to a recall of 0.2 %
    recall, precision = zip(*noise, (0.01, 0.6), (0.5, 0.5), (1.0, 0.1), strict=True)
    curves = Curves(recall=recall, precision=precision)
    (drawn,) = curves_drawn(render((replace(BARE, auprc=0.4, curves=curves),), tmp_path))
    assert [y for x, y in drawn if x < 0.005] == pytest.approx([0.6, 0.6], abs=0.005)
    assert drawn[-1] == pytest.approx((1, 0.1), abs=0.005)


def curves_drawn(document: str) -> list[list[tuple[float, float]]]:
    """Return the points of each curve of the charts, as shares of the axes."""
    paths = re.findall(r'<g data-series="\d">\s*<path class="series" [^>]*d="([^"]+)"', document)
    return [[_shares(point) for point in _points(path)] for path in paths]


def _points(path: str) -> Iterator[tuple[float, float]]:
    """Yield the points of a path of absolute moves and lines."""
    x = y = 0.0
    for command, values in re.findall(r"([MLHV])([^MLHV]+)", path):
        numbers = [float(number) for number in values.split()]
        x = x if command == "V" else numbers[0]
        y = y if command == "H" else numbers[-1]
        yield x, y


def _shares(point: tuple[float, float]) -> tuple[float, float]:
    x, y = point
    return (x - BOX.left) / (BOX.right - BOX.left), (BOX.bottom - y) / (BOX.bottom - BOX.top)


def test_equal_values_are_not_marked_as_best(tmp_path: Path) -> None:
    results = tuple(replace(BARE, bundle=name, auprc=0.5, fpr95=fpr95) for name, fpr95 in (("a", 0.1), ("b", 0.2)))
    document = render(results, tmp_path)
    assert re.findall(r'class="[^"]*best[^"]*">([\d.]+)', document) == ["10.00"]


def test_dataset_without_anomalies_has_no_empty_columns(tmp_path: Path) -> None:
    document = render((replace(BARE, miou=0.5), replace(BARE, dataset="ra21", auprc=0.4, fpr95=0.3)), tmp_path)
    assert re.findall(r'<th scope="col"[^>]*>(\w+) [↑↓]', document) == ["mIoU", "AuPRC", "FPR95"]


def test_overlays_without_figures_of_the_frame_are_shown(tmp_path: Path) -> None:
    write_report(Evaluation(1, (BARE,)), tmp_path / "r.html", {(*BARE.key, "frame_3"): b"jpeg"})
    document = (tmp_path / "r.html").read_text()
    assert "frame_3" in document and base64.b64encode(b"jpeg").decode() in document


def test_drive_and_live_figures_of_a_bag_are_shown(tmp_path: Path) -> None:
    sizes = (DriveSize(0, 1000, 8, 2), DriveSize(1000, None, 4, 4))
    objects = (DriveObject(0.1, 5, 900, 3, 0.2), DriveObject(2.0, 7, 90, 0, None))
    drive = Drive(0.5, "calibrated <1 %", 50, 0.1, 40, 12.0, 6, 30.0, (1.0,), objects, 1, 0.2, sizes)
    moved = {"auprc": -0.0125, "alarms_per_minute": -2006.0}
    live = Live(2.0, 40, 36, 3, 1, 0, {"p50": 21.0}, {"p99": 19.0}, moved, {"p50": 23.0})
    drive = replace(drive, alarm_frames=(3, 5))
    same, now = Consistency(0.5, 39, 0.625, None, 0.875), Streaming(38, 2, 130.0, 0.4321, 0.25, 0.75)
    notes = ("mIoU <not> measured",)
    result = replace(BARE, drive=drive, live=live, notes=notes, consistency=same, streaming=now)
    settings = {"errors": ["x <is> broken"], "warnings": []}
    write_report(Evaluation(1, (result,), settings=settings), tmp_path / "r.html")
    words = " ".join(Tags((tmp_path / "r.html").read_text()).words)
    expected = ["30.00", "6 in 12.0 s", "1 of 2", "0 to 999", "25.0", "1\u2009000 or more", "100.0", "calibrated <1 %"]
    expected += ["3 of 5", "62.50", "87.50", "IoU of 39 pairs of masks", "Streaming accuracy", "43.21", "130"]
    expected += ["AuPRC, live", "-1.25 points", "Alarms per minute, live", "-2006"]
    for word in (*expected, "36", "Latency p50, ms", "mIoU <not> measured", "error: x <is> broken"):
        assert word in words, word


def test_result_without_figures_gives_a_page(tmp_path: Path) -> None:
    document = render((BARE,), tmp_path)
    page = Tags(document)
    assert not page.all("figure") and "–" in document and "NaN" not in document
    assert "0 bundles" in render((), tmp_path)


@pytest.mark.parametrize(
    ("curves", "charts"),
    [
        (Curves(histogram_edges=(0.0, 1.0), histogram_known=(0,), histogram_anomaly=(0,)), 1),
        (Curves(histogram_edges=(0.5, 0.5), histogram_known=(3,), histogram_anomaly=(1,)), 1),
        (Curves(histogram_edges=(-1e9, 1e9), histogram_known=(10**14,), histogram_anomaly=(1,)), 1),
        (Curves(reliability_confidence=(0.0,), reliability_accuracy=(0.0,), reliability_share=(0.0,)), 0),
        (Curves(recall=(0.5,), precision=(0.5,), fpr=(0.0,), tpr=(0.0,)), 2),
    ],
)
def test_degenerate_curves_are_drawn_without_nan(curves: Curves, charts: int, tmp_path: Path) -> None:
    document = render((replace(BARE, curves=curves),), tmp_path)
    assert len(Tags(document).all("figure")) == charts
    assert not re.search(r"\b(nan|inf)\b", document)


def test_components_and_times_are_shown_only_if_measured(tmp_path: Path) -> None:
    without, with_them = (
        render((BARE,), tmp_path),
        render((replace(BARE, components=Components(0.1, 0.2, 0.3, 0.4), inference_ms={"p50": 12.34}),), tmp_path),
    )
    assert "sIoU" not in without and "Time per frame" not in without
    assert "sIoU" in with_them and ">12.3</text>" in with_them


@pytest.mark.slow
@pytest.mark.parametrize(("width_px", "dark"), [(390, False), (390, True), (1400, False), (1400, True)])
def test_page_fits_the_screen_without_complaints(
    path: Path, browser: Browser, width_px: int, dark: bool, tmp_path: Path
) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(path, width_px, dark=dark)
    browser.js("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.js("[innerWidth, document.documentElement.scrollWidth]") == [width_px, width_px]
    assert browser.js("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)"
    )
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert browser.complaints == []
    assert all(url.startswith(("data:", "file:")) for url in browser.requests)
    assert sum(url.startswith("file:") for url in browser.requests) == 1


def test_content_policy_blocks_network_and_inline_scripts(path: Path, browser: Browser) -> None:
    browser.open(path, 1400)
    assert browser.js("fetch('file:///etc/hostname').then(() => 'open', () => 'closed')") == "closed"
    browser.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.evil = 1\">')")
    assert browser.js("new Promise((done) => setTimeout(() => done(window.evil === undefined), 200))")


def test_frame_table_can_be_sorted_filtered_and_expanded(path: Path, browser: Browser) -> None:
    browser.open(path, 1400)
    box = "document.querySelectorAll('.frame-box')[4]"  # thirty frames
    shown = f"[...{box}.querySelectorAll('tbody tr:not([hidden])')]"
    assert browser.js(f"{shown}.length") == 25
    browser.js(f"{box}.querySelector('.more').click()")
    assert browser.js(f"{shown}.length") == 30
    browser.js(f"{box}.querySelectorAll('thead button')[1].click()")
    values = browser.js(f"{shown}.map((row) => row.cells[2].dataset.v ?? null)")
    assert values[-1] is None  # missing values come last in both directions
    numbers = [float(value) for value in values[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    assert browser.js(f"{box}.querySelectorAll('thead th')[2].getAttribute('aria-sort')") == "descending"
    browser.js(f"{{ const i = {box}.querySelector('input'); i.value = '_0007'; i.dispatchEvent(new Event('input')); }}")
    assert browser.js(f"{shown}.map((row) => row.cells[1].textContent)") == ["validation_0007"]
    assert browser.js(f"{box}.querySelector('.found').textContent") == "1 of 30 frames shown"


def test_overlay_viewer_opens_steps_and_closes(path: Path, browser: Browser) -> None:
    browser.open(path, 390)
    browser.js("document.querySelector('.thumb').click()")
    assert browser.js("viewer.open && viewer.querySelector('img').naturalWidth") == 512
    first = browser.js("viewer.querySelector('span').textContent")
    browser.js("viewer.querySelector('[data-step=\"1\"]').click()")
    assert browser.js("viewer.querySelector('span').textContent") != first
    assert browser.js("viewer.getBoundingClientRect().right <= innerWidth")
    browser.js("viewer.querySelector('[value=close]').click()")
    assert browser.js("viewer.open") is False


def test_curves_can_be_read_by_touch_and_keyboard(path: Path, browser: Browser) -> None:
    browser.open(path, 390)
    result = evaluation().results[0]
    browser.js("document.querySelector('svg.plot').scrollIntoView({ block: 'center' })")
    box = browser.js("document.querySelector('svg.plot').getBoundingClientRect().toJSON()")
    x = box["left"] + (48 + 0.6 * 358) * box["width"] / 420
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=box["top"] + 90, button="left", clickCount=1)
    read = float(browser.js("document.querySelector('figure output').value").split()[0])
    at = min(range(len(result.curves.recall)), key=lambda i: abs(result.curves.recall[i] - 0.6))
    assert read == pytest.approx(100 * result.curves.precision[at], abs=1.5)
    assert browser.js("document.querySelector('.readout').textContent").startswith("At recall 60.")
    browser.js("document.querySelector('svg.plot').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }))")
    assert browser.js("document.querySelector('.readout').textContent").startswith("At recall 62.")


@pytest.mark.slow
def test_page_can_be_printed_as_pdf(path: Path, browser: Browser) -> None:
    browser.open(path, 1400)
    assert browser.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["LIGHT", "DARK"])
def test_colours_have_enough_contrast(scheme: str) -> None:
    from anomseg_ros.evaluation import report_style

    colors = dict(re.findall(r"--(\w+): (#\w{6})", getattr(report_style, scheme)))
    ground = luminance(colors["ground"])
    least = {"ink": 7.0, "soft": 4.5, "accent": 4.5, "good": 4.5, "bad": 4.5, **{f"s{i}": 3.0 for i in range(6)}}
    for name, ratio in least.items():
        light, dark = sorted((luminance(colors[name]), ground), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= ratio, name


def luminance(color: str) -> float:
    """Return WCAG's relative luminance of #rrggbb."""
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
