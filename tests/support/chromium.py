"""Drives Debian's chromium in tests, through Playwright's Python driver: real keys, real rendering, every console message kept."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def require_chromium() -> str:
    """The browser's path. Where it or its driver is missing the test is skipped, and fails under CI=true, which installs both."""
    path = shutil.which("chromium")
    try:
        import playwright  # noqa: F401
    except ImportError:
        reason = "the test drives a browser: pip install playwright"
    else:
        if path:
            return path
        reason = "the test drives a browser: apt-get install chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def browser_page(*, width: int = 1440, height: int = 900, offline: bool = False) -> Iterator:
    """A fresh browser page. ``page.complaints`` collects console errors, warnings and uncaught exceptions; dialogs count as one."""
    path = require_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": height}, offline=offline)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a busy machine is slow, not broken
        page.complaints = []

        def complain(kind: str, text: str) -> None:
            page.complaints.append(f"{kind}: {text}")

        page.on(
            "console", lambda message: message.type in ("error", "warning") and complain(message.type, message.text)
        )
        page.on("pageerror", lambda error: complain("uncaught", str(error)))
        page.on("dialog", lambda dialog: (complain("dialog", dialog.message), dialog.dismiss()))
        try:
            yield page
        finally:
            browser.close()


def check_phone(page, path) -> None:
    """Open a file and assert that on a phone (390 px) it is as wide as the screen, with all its details open."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.complaints == []
