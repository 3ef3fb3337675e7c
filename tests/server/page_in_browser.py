"""Looks at the page of a server with a browser: page_in_browser.py BROWSER URL [FOLDER], which gets pictures of it.

Prints what it found as one line of JSON.
"""

import json
import sys

from playwright.sync_api import sync_playwright

OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
TOKEN = "a-token-of-a-test-0123456789"
FOCUSED = "document.activeElement.id || document.activeElement.textContent.slice(0, 40)"


def look(page):
    """What the page shows."""
    page.wait_for_selector("#models article")
    page.wait_for_timeout(2500)
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    cells = "rows => [...rows].map(row => [...row.cells].map(cell => cell.textContent))"
    return {
        "title": page.title(),
        "overflow": max(0, page.evaluate(OVERFLOW)),
        "models": page.eval_on_selector_all("#models h3", "all => all.map(e => e.textContent)"),
        "sequence": page.eval_on_selector_all("#sequences tbody tr", cells)[0],
        "failures": page.eval_on_selector_all("#failures tbody tr", cells),
        "charts": page.eval_on_selector_all("[role=img][aria-label]", "all => all.length"),
        "reached": reached,
    }


def main(browser_path, url, folder=None):
    found = {"problems": [], "sizes": {}}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])

        def open_page(width, height, address):
            phone = width < 600
            page = browser.new_page(viewport={"width": width, "height": height}, is_mobile=phone, has_touch=phone)
            page.on("console", lambda message: found["problems"].append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: found["problems"].append(str(error)))
            page.goto(address)
            return page

        for width, height in (390, 844), (360, 640), (1440, 900):
            page = open_page(width, height, url)
            found["sizes"][str(width)] = look(page)
            if folder is not None:
                page.screenshot(path=f"{folder}/{width}.png")
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.click("#pause")
        page.wait_for_timeout(1200)
        asked.clear()
        page.wait_for_timeout(2500)
        found["paused"] = len(asked)
        page.click("#pause")
        page.wait_for_timeout(1500)
        found["went on"] = len(asked)

        page = open_page(390, 844, "about:blank")

        def guard(route):
            if route.request.headers.get("authorization") == f"Bearer {TOKEN}":
                route.continue_()
            else:
                route.fulfill(status=401, body='{"error":"the request has no token"}')

        page.route("**/v2/statistics", guard)
        page.goto(url)
        states = []
        for token in None, "wrong", TOKEN:
            if token is not None:
                page.fill("#token", token)
                page.keyboard.press("Enter")
            page.wait_for_timeout(1500)
            states.append(page.is_visible("#access") and not page.is_visible("#main"))
            if folder is not None:
                page.screenshot(path=f"{folder}/token-{len(states)}.png")
        found["hidden until the token is right"] = states
        browser.close()
    # The browser itself reports the answers 401 that the page asked the user about.
    found["problems"] = [text for text in found["problems"] if "401" not in text]
    print(json.dumps(found))


main(*sys.argv[1:])
