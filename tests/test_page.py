"""The page: as text, and in a real browser that sorts, filters, opens runs and asks for nothing."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Iterator
from pathlib import Path

import made_up
import pytest
import worlds
from browser import Browser, NoBrowser, browser
from made_up import record, run, world
from PIL import Image
from worlds import HOSTILE, World

from mae_bench.aggregate import aggregate
from mae_bench.records import Outcome, Picture
from mae_bench.report import html as report_html
from mae_bench.report import runs, write_report


class Page(html.parser.HTMLParser):
    """Collects the page's tags, the addresses it could load, its visible text and its data."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_script = tag == "script"
        for name, value in attrs:
            if name in {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}:
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), name

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
        else:
            self.text += data

    @property
    def runs(self) -> list[dict]:
        return runs.unpack(self.scripts[0])


def write(world_: World, folder: Path) -> Path:
    """Write the page of a world whose runs have curves, pictures, load reports and groups."""
    results, records = world_
    for run_id in records:
        own = folder / "runs" / run_id
        own.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(own / "p.png")
        lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(10)]
        (own / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 10, "lo')
        report = {"loaded": ["a.weight", "b.weight"], "resized": {"pos_embed": "1 -> 2"}}
        (own / "load_report.json").write_text(json.dumps(report))
        groups = "name,layer,lr_scale,weight_decay\na,0,0.5,0.0\nb,0,0.5,0.0\nc,1,1.0,0.05\n"
        (own / "parameters.csv").write_text(groups)
    write_report(results, records, folder / "report", ["html"], work_dir=folder)
    return folder / "report" / "index.html"


def full_page(world_: World, folder: Path) -> str:
    return write(world_, folder).read_text()


@pytest.fixture
def measured() -> World:
    return worlds.measured()


def test_the_page_asks_the_network_for_nothing(measured: World, tmp_path: Path):
    text = full_page(measured, tmp_path)
    page = Page(text)
    assert "link" not in page.tags and "iframe" not in page.tags
    assert page.tags.count("script") == 2
    assert page.addresses
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert "url(" not in text and "@import" not in text and "fetch(" not in text
    assert "default-src 'none'" in text and "script-src 'sha256-" in text


def test_links_in_the_page_lead_somewhere(measured: World, tmp_path: Path):
    page = Page(full_page(measured, tmp_path))
    assert len(page.ids) == len(set(page.ids))
    targets = {address[1:] for address in page.addresses if address.startswith("#")}
    described = {f"run-{view['id']}" for view in page.runs}
    assert targets & described
    assert targets <= set(page.ids) | described


def test_the_page_describes_every_run(measured: World, tmp_path: Path):
    views = {view["id"]: view for view in Page(full_page(measured, tmp_path)).runs}
    assert set(views) == set(measured[1])
    for view in views.values():
        assert [curve["last"] for curve in view["curves"]] == ["0.1"]
        assert ["loaded", "2 keys: a.weight, b.weight"] in view["load"]
        assert view["groups"] == [["0", "0.5", "0.0", "2"], ["1", "1.0", "0.05", "1"]]
        assert "solver.base_lr" in dict(view["settings"])
        assert dict(view["origin"])["commit"] == "0123456789abcdef"
    failed = [view for view in views.values() if view["status"] == "failed"]
    assert [view["error"] for view in failed] == ["loss is nan\nat step 12"]
    box = next(view for view in views.values() if view["task"] == "detection" and view["metrics"])
    name, value, unit, _ = box["metrics"][0]
    assert (value, unit) == (measured[1][box["id"]].outcome.metrics[name].value, "%")


def test_hostile_text_is_escaped_in_the_page(tmp_path: Path):
    text = full_page(worlds.hostile(), tmp_path)
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "\x1b" not in text and "\x1b" not in json.dumps(page.runs, ensure_ascii=False)
    assert page.text.count("<script>alert(1)</script>") > 8
    assert HOSTILE.replace("\x1b", "\ufffd") in {view["init"] for view in page.runs}
    assert {a[:11] for a in page.addresses} <= {
        "data:image/",
        *(a[:11] for a in page.addresses if a[0] == "#"),
    }


def test_a_protocol_card_stands_under_its_table(measured: World, tmp_path: Path):
    text = Page(full_page(measured, tmp_path)).text
    assert text.count("classification on mini-inat") >= 1
    assert "arXiv:2111.06377 Table 9" in text and "learning rates tried" in text
    assert "main_finetune.py" in text and "\N{NOT EQUAL TO}" in text


def test_a_picture_outside_the_run_folder_stays_out(tmp_path: Path):
    which = record(run("segmentation"))
    pictures = tuple(
        Picture(path=path, caption=path) for path in ("../secret.png", "notes.txt", "none.png")
    )
    which = which.model_copy(update={"outcome": Outcome(metrics={}, pictures=pictures)})
    folder = tmp_path / "runs" / which.id
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "runs" / "secret.png")
    (folder / "notes.txt").write_text("text")
    write_report([], {which.id: which}, tmp_path / "out", ["html"], work_dir=tmp_path)
    assert "data:image" not in (tmp_path / "out" / "index.html").read_text()
    assert not (tmp_path / "out" / "pictures").exists()


def with_picture(folder: Path) -> tuple[dict, Path]:
    which = record(run("segmentation"))
    outcome = Outcome(metrics={}, pictures=(Picture(path="big.png", caption="big"),))
    which = which.model_copy(update={"outcome": outcome})
    own = folder / "runs" / which.id
    own.mkdir(parents=True)
    Image.effect_noise((1600, 900), 80).save(own / "big.png")
    return {which.id: which}, own / "big.png"


def test_large_pictures_are_shrunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records, picture = with_picture(tmp_path)
    write_report([], records, tmp_path / "out", ["html"], work_dir=tmp_path)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "data:image/jpeg" in text
    assert len(text) < picture.stat().st_size
    monkeypatch.setattr(Image, "open", pytest.fail)
    write_report([], records, tmp_path / "out", ["html"], work_dir=tmp_path)
    assert (tmp_path / "out" / "index.html").read_text() == text


def test_pictures_without_room_lie_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records, _ = with_picture(tmp_path)
    monkeypatch.setattr(report_html, "PICTURES_ROOM", 1000)
    write_report([], records, tmp_path / "out", ["html"], work_dir=tmp_path)
    page = Page((tmp_path / "out" / "index.html").read_text())
    (address,) = [address for address in page.addresses if not address.startswith("#")]
    assert Image.open(tmp_path / "out" / address).size == (1100, 619)


def test_200_runs_stay_below_3_mb(tmp_path: Path):
    tables = made_up.tables()
    cells, records = world(tables, range(8), worlds.score, imported=("moco-v3", "beit"))
    results = aggregate(tables, "mini", cells, records, {})
    assert len(records) >= 200
    path = write((results, records), tmp_path)
    assert path.stat().st_size < 3_000_000 - report_html.PICTURES_ROOM


# -- In the browser.


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with browser() as started:
            yield started
    except NoBrowser as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(worlds.measured(), tmp_path_factory.mktemp("page"))


@pytest.fixture
def tab(chromium: Browser, address: Path) -> Iterator[Browser]:
    """A fresh page; whatever a test does there, nothing leaves it and nothing is complained of."""
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.look(1200)
    chromium.send("Page.navigate", url="about:blank")
    chromium.open(address)
    yield chromium
    assert chromium.errors == []
    assert chromium.outside == []


TITLES = "all('#table6 tbody.entry').filter(row => !row.hidden).map(row => row.dataset.init)"
PAPER_ORDER = ["random", "supervised", "mae-pixel", "mae-norm-pixel", "mae-dvae-token"]
RISING = ["random", "mae-pixel", "supervised", "mae-dvae-token", "mae-norm-pixel"]


@pytest.mark.slow
def test_a_click_sorts_best_first_then_worst_then_as_in_the_paper(tab: Browser):
    button = "document.querySelector('#table6 th[data-col=\"1\"] button')"
    assert tab.run(TITLES) == PAPER_ORDER
    for expected, direction in ((RISING[::-1], "descending"), (RISING, "ascending")):
        tab.run(f"{button}.click()")
        assert tab.run(TITLES) == expected
        assert tab.run(f"{button}.parentElement.ariaSort") == direction
    tab.run(f"{button}.click()")
    assert tab.run(TITLES) == PAPER_ORDER


@pytest.mark.slow
def test_incomplete_cells_come_last_however_it_is_sorted(tab: Browser):
    rows = "all('#table4 tbody.entry').map(row => row.dataset.init)"
    for _ in range(2):
        tab.run("document.querySelector('#table4 th[data-col=\"0\"] button').click()")
        assert set(tab.run(rows)[2:]) == {"random", "moco-v3", "beit"}


@pytest.mark.slow
def test_the_keyboard_alone_sorts_and_opens_a_run(tab: Browser):
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    tab.run("document.querySelector('#table6 thead button').focus()")
    tab.press("Tab")
    assert tab.run("document.activeElement.closest('th').dataset.col") == "0"
    tab.press("Enter")
    assert tab.run(TITLES) == RISING[::-1]
    tab.run("document.querySelector('#runs summary').focus()")
    tab.press("Space")
    tab.wait("document.querySelector('#runs details').open")
    tab.wait("document.querySelector('#runs details .inside') !== null")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "tables", "columns"),
    [
        ("init", "supervised", ["table4", "table5", "table6"], 4),
        ("task", "detection", ["table4", "table7"], 0),
        ("protocol", "classification/mini_linear_probe", ["table6"], 2),
        ("backbone", "vit_mini_patch8", ["table4", "table5", "table6", "table7"], 4),
    ],
)
def test_filters_leave_what_was_asked_for(tab: Browser, field, value, tables, columns):
    tab.run(
        f"form.elements['{field}'].value = '{value}';"
        "form.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    assert tab.run("all('.result').filter(one => !one.hidden).map(one => one.id)") == tables
    cells = "all('#table6 .ours')[1].querySelectorAll('td:not([hidden])').length"
    if columns:
        assert tab.run(cells) == columns
    if field == "init":
        assert tab.run(TITLES) == [value]
    key = {"protocol": "recipe"}.get(field, field)
    assert tab.run(f"chosen().length > 0 && chosen().every(run => run.{key} === '{value}')")
    shown = tab.run("all('#runs details').length")
    assert shown == tab.run("chosen().length")
    tab.run("form.querySelector('[type=reset]').click()")
    tab.wait("all('.result').every(one => !one.hidden)")
    assert tab.run("all('#runs details').length") == tab.run("runs.length")


@pytest.mark.slow
def test_a_score_leads_to_its_run_with_everything_in_it(tab: Browser):
    tab.run("document.querySelector('#table6 .ours a[href]').click()")
    tab.wait("document.querySelector('#runs details[open] .inside') !== null")
    opened = "document.querySelector('#runs details[open]')"
    assert tab.run(f"{opened}.id") == tab.run("location.hash.slice(1)")
    titles = tab.run(f"all('h4', {opened}).map(title => title.textContent)")
    assert {"Scores and cost", "Provenance", "Effective recipe", "Load report"} <= set(titles)
    assert "Parameter groups" in titles
    assert tab.run(f"{opened}.querySelectorAll('svg path.line').length") == 1


@pytest.mark.slow
def test_runs_can_be_searched(tab: Browser):
    tab.run("search.value = 'detection seed 1 failed'; search.dispatchEvent(new Event('input'))")
    assert tab.run("all('#runs details').length") == 1
    tab.run("document.querySelector('#runs summary').click()")
    tab.wait("document.querySelector('#runs pre.error') !== null")
    assert "loss is nan" in tab.run("document.querySelector('#runs pre.error').textContent")


@pytest.mark.slow
def test_light_and_dark_follow_the_reader_until_chosen(tab: Browser):
    paper = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        tab.look(1200, scheme=scheme)
        seen[scheme] = tab.run(paper)
    assert seen == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 22, 26)"}
    tab.run("form.querySelector('.theme').click()")
    assert tab.run(paper) == seen["light"]
    tab.run("form.querySelector('.theme').click()")
    assert tab.run(paper) == seen["dark"]
    tab.run("form.querySelector('.theme').click()")


# WCAG 2.1's relative luminance and contrast, of text against the page.
CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
  const channel = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const weights = [0.2126, 0.7152, 0.0722];
  const light = (text) => parse(text).reduce((sum, part, i) => sum + channel(part) * weights[i], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const low = [];
  for (const one of all("p, td, th, dt, dd, small, code, a, label, summary, li, .state, .n, sup")) {
    if (!one.offsetParent || !one.textContent.trim()) continue;
    const ink = light(getComputedStyle(one).color);
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) low.push(`${one.tagName}.${one.className} ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
})()
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_theme(tab: Browser, scheme: str):
    tab.look(1200, scheme=scheme)
    assert tab.run(CONTRAST) == []


@pytest.mark.slow
def test_a_phone_shows_all_without_scrolling_the_page_sideways(tab: Browser):
    tab.look(360, 740)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    wide = "document.querySelector('#table6 .scroll')"
    assert tab.run(f"{wide}.scrollWidth > {wide}.clientWidth")
    tab.run("document.querySelector('#runs summary').click()")
    tab.wait("document.querySelector('#runs .inside') !== null")
    assert tab.run("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_print_leaves_out_what_only_a_screen_needs(tab: Browser, tmp_path: Path):
    tab.look(1200, scheme="dark", media="print")
    seen = "all('nav, .filters, #runs details:not([open])').filter(one => one.offsetParent).length"
    assert tab.run(seen) == 0
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.look(1030, media="print")  # A4 landscape between its margins
    wide = "all('.result table').filter(one => one.getBoundingClientRect().width > 1030).length"
    assert tab.run(wide) == 0
    tab.run("document.querySelector('#table6 table').style.minWidth = '3000px'")
    assert tab.run(wide) == 1
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run(wide) == 0
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert tab.run(wide) == 1
    tab.print(tmp_path / "page.pdf")
    pages = re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())
    assert 1 < len(pages) < 20


@pytest.mark.slow
def test_hostile_text_stays_text_in_the_browser(chromium: Browser, tmp_path: Path):
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(write(worlds.hostile(), tmp_path))
    chromium.run("all('#runs summary').forEach(one => one.click())")
    chromium.wait("all('#runs .inside').length === runs.length")
    assert chromium.run("document.scripts.length") == 2
    assert chromium.run("all('main script, main b b, [href^=\"http\"]').length") == 0
    assert "<script>alert(1)</script>" in chromium.run(
        "document.querySelector('#runs').textContent"
    )
    for name in ("init", "task", "protocol", "backbone"):
        chromium.run(
            f"form.elements['{name}'].selectedIndex = form.elements['{name}'].length - 1;"
            "form.dispatchEvent(new Event('change', {bubbles: true}))"
        )
    chromium.run("form.reset()")
    for width in (390, 1280):
        chromium.look(width)
        assert chromium.run("document.documentElement.scrollWidth") == width
    assert chromium.errors == [] and chromium.outside == []
