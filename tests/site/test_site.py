"""The built site, as a browser shows it: `./dev docs`, then `pytest tests/site`.

Every page is opened on a desk and on a phone, in the light and in the dark theme. `page.js` says
what it looks for. The site takes nothing from elsewhere, so that it can be read without a network.
"""

import functools
import http.server
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
PAGES = sorted(page.relative_to(SITE).as_posix() for page in SITE.rglob("*.html"))
SOURCES = [page for page in PAGES if page.startswith("_modules/")]  # of modules, all alike
WIDTHS = {"desk": 1366, "phone": 390}
THEMES = "light", "dark"
LOOK = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

pytestmark = pytest.mark.skipif(not PAGES, reason="the site is not built: run `./dev docs`")


# --- In a browser --------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and leaves the output to pytest."""

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: install the package `chromium`")
    with playwright.sync_playwright() as p:
        # Without a sandbox, which a container does not allow; all pages are our own.
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=THEMES)
def theme(request):
    return request.param


@pytest.fixture(scope="module", params=WIDTHS, ids=str)
def window(request, browser, theme, address):
    """A window, and what has gone wrong in it."""
    size = {"width": WIDTHS[request.param], "height": 900}
    context = browser.new_context(viewport=size, color_scheme=theme)
    window, wrong = context.new_page(), []
    window.on("console", lambda x: wrong.append(x.text) if x.type == "error" else None)
    window.on("pageerror", lambda x: wrong.append(str(x)))
    window.on(
        "response", lambda x: wrong.append(f"{x.status}: {x.url}") if x.status >= 400 else None
    )
    window.on("request", lambda x: x.url.startswith(address) or wrong.append(f"away: {x.url}"))
    yield window, wrong
    context.close()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in SOURCES[1:]])
def test_a_page_fits_loads_and_can_be_read(page, window, address):
    window, wrong = window
    wrong.clear()
    window.goto(address + page, wait_until="load")
    faults = wrong + window.evaluate(LOOK)
    assert not faults, "\n".join(faults)


# --- As text -------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, page):
        super().__init__()
        self.links, self.anchors = [], {""}
        self.feed((SITE / page).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id"))
        if tag == "a" and not re.match(r"[a-z]+:", attrs.get("href", "#")):
            self.links.append(attrs.get("href", "#"))


def test_every_link_leads_to_a_page_and_a_place_on_it():
    pages = {page: Links(page) for page in PAGES}
    broken = []
    for page, found in pages.items():
        for link in found.links:
            target, anchor = urldefrag(urljoin(page, link))
            if target not in pages:
                if not (SITE / target).exists():
                    broken.append(f"{page}: {link}")
            elif unquote(anchor) not in pages[target].anchors:
                broken.append(f"{page}: {link}")
    assert sum(len(found.links) for found in pages.values()) > 100
    assert broken == []
