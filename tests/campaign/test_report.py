"""The page of a campaign: what is in it, that it is inert and stands alone, and how it looks in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from campaign import reproducer
from campaign.cli import call
from campaign.report import behaviour_of, render, write_report
from campaign.statistics import Identity, Statistics, read
from fuzz_targets import codec
from fuzz_targets.harness import run_and_judge
from oracles import ORACLES
from reference_impl.scenario import operation, scenario

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
SCENARIO = scenario(design="disconnect", devices=("block",), operations=(operation("connect"), operation("exit")))
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian's package: chromium)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of two sessions with three findings: one minimized, one whose words are hostile, and a note."""
    folder = tmp_path_factory.mktemp("campaign")
    verdict = run_and_judge(SCENARIO)
    errors = [finding for finding in verdict.findings if finding.rule == "direct-call"]
    notes = [finding for finding in verdict.findings if finding.note]
    place = folder / "findings"
    path = reproducer.write(place, SCENARIO, errors[0].signature, b"", verdict, orders=("edk2",))
    corpus = folder / "corpus" / "lifecycle" / "disconnect"
    corpus.mkdir(parents=True)
    data = codec.encode(SCENARIO)
    (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    statistics = Statistics(folder, Identity(target="lifecycle", environment="conforming"))
    for number in range(2):
        statistics.begin_session(
            designs=("disconnect", "reference-count"), jobs=2, max_time_s=60, runs=None, seed=7, guided=True, pid=1
        )
        worker = statistics.add_worker("disconnect", "workers/a")
        figures = {"executions": 1000, "edges": 70, "features": 90, "corpus_size": 5, "rss_max_mb": 80}
        statistics.update_worker(worker, seconds=50.0, **figures)
        for minute in (1, 2):
            seconds = 60.0 * (2 * number + minute)
            for design in ("disconnect", "reference-count"):
                progress = {"executions": 500, "edges": 60, "features": 80, "corpus_size": 5, "findings": 1}
                statistics.add_progress(seconds=seconds, design=design, **progress)
        statistics.update_session(120.0, "done")
    for finding, words in ((errors[0], ""), (errors[1], HOSTILE), (notes[0], "")):
        row = statistics.add_finding(
            raw=b"",
            **{name: getattr(finding, name) for name in ("oracle", "rule", "agent", "source", "note")},
            design="disconnect",
            signature=f"{finding.signature}{words}",
            subject=words or finding.subject,
            expected=words or finding.expected,
            seen=words or finding.seen,
            first_seen=time.time(),
        )
        sighting = {"last_seen": time.time(), "orders": ("edk2",), "environments": ("conforming",), "switches": ()}
        statistics.see(row, worker, count=1234, **sighting)
        if finding is errors[0]:
            statistics.update_finding(
                row, state="minimized", reliability=1.0, operations=2, environment="conforming", orders=("edk2",)
            )
            statistics.update_finding(row, reproducer=str(path.relative_to(folder)))
    statistics.add_event("finding", "disconnect", HOSTILE)
    statistics.close()
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    """The campaign's page, made by the command."""
    path = folder / "report.html"
    assert call(["report", str(folder)]) == 0
    return path


class Elements(HTMLParser):
    """Every element of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Remember it."""
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of the elements of this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_command_writes_the_page_and_says_where(folder, tmp_path, capsys):
    """Beside the campaign's other files, or where it is asked to."""
    out = tmp_path / "page.html"
    assert call(["report", str(folder), "--out", str(out), "--scenarios", "0"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "no scenario was run again" in out.read_text()
    assert call(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"ebsfuzz: {tmp_path}: no campaign: campaign.sqlite is missing\n"
    assert call(["report", str(folder), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().err


def test_everything_that_a_reader_wants_is_in_the_page(page):
    """Figures, the table, charts, each finding with its diagram, timeline and commands, behaviour and configuration."""
    read_page = Elements(page.read_text())
    text = " ".join(read_page.text.split())
    for words in (
        "Designs × rules",
        "memory-services/",
        "2 (2,468)",
        "Over time",
        "Expected: ",
        "Seen: ",
        ">>> ",
        "version: 1 design: disconnect",
        " replay ",
        " minimize ",
        "tianocore/edk2#9802",
        "services × statuses",
        "near misses",
        "a driver closes an event in its own notification",
        "2,000",
        "Sessions",
        "80 MiB",
    ):
        assert words in text, words
    images = [image for image in read_page.all("img") if (image["src"] or "").startswith("data:image/svg+xml;base64,")]
    assert len(images) == len(read_page.all("img")) == 1
    assert b"<svg" in base64.b64decode((images[0]["src"] or "").partition("base64,")[2])
    assert len(read_page.all("details")) == 3
    assert [svg.get("class") for svg in read_page.all("svg")].count("chart") == 4
    assert all(oracle in text for oracle in ORACLES)


def test_the_behaviour_that_the_seeds_do_not_show_is_marked(folder):
    """It is what the campaign is for."""
    record = read(folder)
    behaviour = behaviour_of(folder, record, 10)
    assert (behaviour.runs, behaviour.total, behaviour.problem) == (2, 2, "")
    assert all(isinstance(cells, set) for cells in behaviour.new.values())
    name = next(iter(behaviour.maps))
    behaviour.new[name].add(("AllocatePool", "EFI_SUCCESS"))
    assert re.search(r'class="cell new"[^>]*>EFI_SUCCESS 2<', render(folder, record, behaviour))


def test_a_corpus_that_cannot_run_again_does_not_cost_the_page(folder, tmp_path, monkeypatch):
    """It says why there is no map."""
    copy = tmp_path / "campaign"
    shutil.copytree(folder, copy)
    (copy / "corpus" / "lifecycle" / "notes.txt").write_text("junk")
    text = write_report(copy, None, 10).read_text()
    assert "The corpus could not be run again: " in text
    assert "notes.txt" in text


def test_text_of_a_campaign_is_text(page):
    """No element, no attribute and no template comes out of it."""
    text = page.read_text()
    read_page = Elements(text)
    assert "alert(1)" in read_page.text
    assert "{{ 7*7 }}" in read_page.text
    assert len(read_page.all("script")) == 1
    assert not [element for element in read_page.elements if any(name.startswith("on") for name in element[1])]
    assert "x" not in [image["src"] for image in read_page.all("img")]


def test_the_page_reaches_out_to_nobody(page):
    """The policy allows no address, and of scripts the page's own; the only addresses are links that a reader may follow."""
    text = page.read_text()
    read_page = Elements(text)
    (policy,) = [meta["content"] or "" for meta in read_page.all("meta") if "http-equiv" in meta]
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'")
    for tag, attributes in read_page.elements:
        assert not {"srcset", "action", "poster", "background"} & set(attributes), tag
        if "src" in attributes:
            assert (attributes["src"] or "").startswith("data:")
        if tag != "a":
            assert "href" not in attributes, tag
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", text)
    hosts = {
        (link["href"] or "").split("/")[2] for link in read_page.all("a") if not (link["href"] or "").startswith("#")
    }
    assert hosts <= {"github.com"}


def test_every_link_inside_leads_somewhere_and_everything_that_scrolls_takes_the_keyboard(page):
    """A keyboard reaches it; a reader of the screen gets a name for it."""
    read_page = Elements(page.read_text())
    ids = [attributes["id"] for _, attributes in read_page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = {(link["href"] or "")[1:] for link in read_page.all("a") if (link["href"] or "").startswith("#")}
    assert targets <= set(ids)
    for _, attributes in read_page.elements:
        if attributes.get("class") in ("scroll", "diagram"):
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    assert all(image["alt"] for image in read_page.all("img"))
    assert all(header["scope"] for header in read_page.all("th"))


# ---- in a browser ---------------------------------------------------------------------------------------------------


def browse(tmp_path: Path, page: Path, width: int, anchor: str = "", *options: str) -> dict[str, object]:
    """What a headless browser makes of the page in a frame of this width."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<!doctype html><body style="margin:0"><iframe src="{page.as_uri()}{anchor}" style="width:{width}px;height:900px;
        border:0"></iframe><pre id="told"></pre><script>addEventListener("load", () => {{
        const there = document.querySelector("iframe"), inside = there.contentDocument;
        document.getElementById("told").textContent = JSON.stringify({{
          wide: inside.documentElement.scrollWidth, open: [...inside.querySelectorAll("details[open]")].map((one) => one.id),
          paper: getComputedStyle(inside.body).backgroundColor,
          drawn: [...inside.images].map((one) => one.naturalWidth),
          reached: there.contentWindow.performance.getEntriesByType("resource").map((one) => one.name.slice(0, 5)),
        }}); }})</script>"""
    )
    ended = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--allow-file-access-from-files",
                "--hide-scrollbars",
            ),
            *(f"--user-data-dir={tmp_path / 'profile'}", *options, "--dump-dom", frame.as_uri()),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    told = re.search(r'<pre id="told">(.*?)</pre>', ended.stdout)
    assert told is not None, ended.stderr
    answer: dict[str, object] = json.loads(html.unescape(told[1]))
    return answer


@needs_chromium
def test_on_a_phone_nothing_is_wider_than_the_screen(page, tmp_path):
    """Wide tables and diagrams scroll by themselves; a link to a finding opens it."""
    told = browse(tmp_path, page, 390, "#finding-1")
    assert told["wide"] == 390
    assert told["open"] == ["finding-1"]
    assert all(width > 600 for width in told["drawn"])
    assert set(told["reached"]) <= {"data:"}
    assert told["paper"] == "rgb(255, 255, 255)"


@needs_chromium
def test_in_the_dark_the_page_is_dark(page, tmp_path):
    """As the reader's machine asks for it."""
    told = browse(tmp_path, page, 1280, "", "--blink-settings=preferredColorScheme=0")
    red, green, blue = (int(number) for number in re.findall(r"\d+", str(told["paper"])))
    assert max(red, green, blue) < 60
    assert told["open"] == []


@needs_chromium
def test_in_print_every_finding_is_open(page, tmp_path):
    """A closed one would be a heading without what it is about: the print is longer than that of a page without them."""
    sizes = []
    for name, text in (
        ("all", page.read_text()),
        ("none", re.sub(r"<details.*?</details>", "", page.read_text(), flags=re.S)),
    ):
        (tmp_path / f"{name}.html").write_text(text)
        subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
                *("--disable-background-networking", "--disable-component-update"),
                *(f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={tmp_path / 'page.pdf'}"),
                (tmp_path / f"{name}.html").as_uri(),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=240,
            check=True,
        )
        sizes.append(len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())))
    assert sizes[0] >= sizes[1] + 2
