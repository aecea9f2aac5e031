"""Reports as a browser shows them: nothing is loaded, nothing is cut off or covered, and everything can be read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser
from report_runs import hostile, preference_run, reward_run, rounds_run, survivors_run, unlearning_run

from align.runs.record import load_run
from align.runs.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
WIDTHS = {"desktop": 1280, "phone": 360}
KINDS = ("preference", "unlearning", "reward", "survivors", "rounds", "comparison", "forgetting compared")

# all text that is laid out: its words, its boxes, the nearest box that must hold it, and what it is painted on
_TEXTS = """(() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const scrolls = (e) => e.closest('.scroll, pre, .said');
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.data.trim() || !element.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const svg = element.closest('svg'), holders = 'figure, dd, dt, li, p, td, th, div, section, header';
    const box = (svg || element.closest(holders)).getBoundingClientRect();
    let ground = element;
    while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
    for (const r of range.getClientRects()) if (r.width > 0) found.push({
      text: node.data.trim().slice(0, 40), box: [r.left, r.top, r.right, r.bottom], within: [box.left, box.right],
      scrolls: !!scrolls(element), svg: !!svg, size: svg ? r.height : parseFloat(style.fontSize),
      ink: svg ? style.fill : style.color, ground: getComputedStyle(ground || document.body).backgroundColor });
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[bytes]]]:
    """An address that text in the reports names, and what it was asked."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with connection:
                asked.append(connection.recv(4096))

    threading.Thread(target=listen, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    listener.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, server: tuple[str, list[bytes]]) -> dict[str, Path]:
    """A report of each kind of run; their texts name the server's address."""
    folder, text = tmp_path_factory.mktemp("runs"), hostile(server[0])
    runs = {
        "preference": [preference_run(folder / "preference", text=text + "x" * 3000)],
        "unlearning": [unlearning_run(folder / "unlearning", text=text)],
        "reward": [reward_run(folder / "reward", text=text)],
        "survivors": [survivors_run(folder / "survivors")],
        "rounds": [rounds_run(folder / "rounds")],
        "comparison": [preference_run(folder / f"run-{i}", text=text, slope=i, seed=i) for i in (1, 2, 3)],
        "forgetting compared": [unlearning_run(folder / f"unlearning-{i}", fall=i / 10) for i in (1, 2, 3)],
    }
    found = {}
    for kind, paths in runs.items():
        out = paths[0] if len(paths) == 1 else folder / kind
        found[kind] = write_report([load_run(path) for path in paths], out)[0]
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_can_be_read(browser: Browser, pages: dict[str, Path], kind: str, width: int, dark: bool) -> None:
    browser.open(pages[kind], width=width, dark=dark)
    assert browser.requests() == [pages[kind].as_uri()]
    wide, room = browser.value("[document.scrollingElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= room <= width
    assert browser.value("document.querySelectorAll('script, img, link, iframe, object, base, [onerror]').length") == 0
    texts = browser.value(_TEXTS)
    assert len(texts) > 60
    for one in texts:
        left, _, right, _ = one["box"]
        assert one["scrolls"] or (left > -1 and right < width + 1), f"beyond the page: {one}"
        assert one["scrolls"] or (left > one["within"][0] - 1 and right < one["within"][1] + 1), f"cut off: {one}"
        assert contrast(one["ink"], one["ground"]) >= 4.5, f"too faint: {one}"
        assert one["size"] >= 9, f"too small: {one}"
    assert overlapping(texts) == []


def contrast(ink: str, ground: str) -> float:
    """The contrast ratio of WCAG 2 between two colours such as ``rgb(1, 2, 3)``."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def overlapping(texts: list[dict]) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other by more than two pixels in both directions."""
    found = []
    still = sorted((one for one in texts if not one["scrolls"]), key=lambda one: one["box"][1])
    for i, one in enumerate(still):
        left, top, right, bottom = one["box"]
        for other in still[i + 1 :]:
            if other["box"][1] > bottom:
                break
            across = min(right, other["box"][2]) - max(left, other["box"][0])
            down = min(bottom, other["box"][3]) - max(top, other["box"][1])
            if across > 2 and down > 2:
                found.append((one["text"], other["text"]))
    return found


def test_the_contrast_of_black_on_white_is_21() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("kind", ["preference", "unlearning", "reward", "comparison"])
def test_text_of_models_stays_text(
    browser: Browser, pages: dict[str, Path], server: tuple[str, list[bytes]], kind: str
) -> None:
    browser.open(pages[kind], width=1280)
    address, asked = server
    # also where it is folded; a click opens it
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    text = browser.value("document.body.innerText")
    assert f"</style></pre></title></svg>--><script>fetch('{address}/script')</script><img src={address}/image" in text
    assert "{{ 7 * 7 }}" in text
    assert "<U+202E>gnirts a<U+202C> <U+0000><U+001B>[31m <U+D800> $x^2$" in text
    assert browser.value("document.title") == pages[kind].parent.name or kind == "comparison"
    assert asked == []
    assert browser.requests() == [pages[kind].as_uri()]


def test_the_policy_of_the_page_stops_what_would_load(
    browser: Browser, pages: dict[str, Path], server: tuple[str, list[bytes]]
) -> None:
    """Were a text ever taken for HTML, the browser would still ask nobody."""
    browser.open(pages["rounds"], width=1280)
    address, asked = server
    browser.value(f"document.body.insertAdjacentHTML('beforeend', '<img src={address}/image>')")
    assert browser.value(f"fetch('{address}/fetch').then(() => 'answered', () => 'refused')") == "refused"
    browser.value("new Promise(done => setTimeout(done, 200))")
    assert asked == []
    said = [e["params"]["entry"]["text"] for e in browser.events if e["method"] == "Log.entryAdded"]
    assert any("Content Security Policy" in text for text in said)


def test_ids_are_one_of_a_kind_and_charts_have_names(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["preference"], width=1280)
    ids = _every(browser, "[id]", "id")
    assert len(ids) == len(set(ids)) > 20
    used = browser.value("[...document.querySelectorAll('use')].map(e => e.href.baseVal.slice(1))")
    clips = browser.value(
        "[...document.querySelectorAll('[clip-path]')].map(e => e.getAttribute('clip-path').slice(5, -1))"
    )
    assert set(used) | set(clips) <= set(ids)
    names = browser.value(
        "[...document.querySelectorAll('figure svg[role=img]')].map(e => e.getAttribute('aria-label'))"
    )
    assert any(name.startswith("Drop (nats per token). rejected: 0 at 0, -1.4 at 60") for name in names)
    levels = [int(name[1]) for name in _every(browser, "h1, h2, h3, h4", "tagName")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def _every(browser: Browser, selector: str, what: str) -> list[str]:
    """A property of all elements that a selector finds."""
    found: list[str] = browser.value(f"[...document.querySelectorAll('{selector}')].map(e => e.{what})")
    return found


def test_paper_is_white_whatever_the_scheme(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["preference"], width=1000, dark=True, media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("getComputedStyle(document.body).color") == "rgb(31, 35, 40)"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.value("getComputedStyle(document.querySelector('.said')).maxHeight") == "none"
