"""A report in a real browser without a network: what a reader clicks does what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from celo2.evaluate.report.html import write_report
from helpers.suite_results import make_suite

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1280,1000",
)
INK = "return getComputedStyle(document.querySelector('#curves .xtitle')).fill"


@pytest.fixture(scope="module")
def driver() -> Iterator:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    return write_report(make_suite(), tmp_path_factory.mktemp("report"))["report"].as_uri()


@pytest.fixture
def page(driver, address):
    """The page, freshly loaded in light colours, 1280 pixels wide."""
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    _prefer(driver, "light")
    driver.get(address)
    return driver


def _prefer(driver, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _find(page, selector: str):
    return page.find_element("css selector", selector)


def _click(page, selector: str) -> None:
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", _find(page, selector))
    _find(page, selector).click()


def _wait(page, condition: str) -> None:
    """Until a JavaScript expression holds."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 60, poll_frequency=0.05).until(lambda d: d.execute_script(f"return {condition}"))


def _choose(page, task: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(_find(page, "#task")).select_by_visible_text(task)


def _traces(page) -> int:
    return page.execute_script("return document.querySelectorAll('#curves .scatterlayer .trace').length")


def _last_x(page, optimizer: str) -> float:
    """Where an optimizer's curve ends on the horizontal axis."""
    script = "return document.getElementById('curves').data.find(one => one.uid === arguments[0]).x.at(-1)"
    return page.execute_script(script, optimizer)


def _column(page, table: str, column: int) -> list[str]:
    cells = page.find_elements("css selector", f"#{table} tbody td:nth-child({column})")
    return [cell.get_attribute("textContent") for cell in cells]


def _title(page) -> str:
    return _find(page, "#curves .ytitle").get_attribute("textContent")


def test_page_opens_without_errors_and_without_the_network(page, address):
    for figure in ("scores", "profiles", "curves", "rates"):
        assert page.find_elements("css selector", f"#{figure} .scatterlayer .trace")
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert address in asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    buttons = page.find_elements("css selector", "#curves .modebar-btn")
    labels = {button.get_attribute("aria-label") for button in buttons}  # none sends it elsewhere
    assert labels == {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


def test_choosing_a_task_draws_it_and_shows_its_table(page):
    assert _title(page) == "training return"
    _choose(page, "lm@tiny")
    assert _title(page) == "validation loss"
    assert _traces(page) == 2 * 4  # a line and a band each
    assert page.execute_script("return document.getElementById('curves').data[1].y.at(-1)") == pytest.approx(
        5.6813  # 1.25 times the training loss
    )
    shown = [
        section for section in page.find_elements("css selector", "section.task") if section.is_displayed()
    ]
    assert [section.get_attribute("id") for section in shown] == ["task-2"]
    _click(page, "#overview button[data-task='1']")
    assert _find(page, "#task").get_attribute("value") == "1"


def test_buttons_change_the_horizontal_axis(page):
    _choose(page, "lm@tiny")
    assert _last_x(page, "celo2") == 1000
    _click(page, "#axis [data-choice=seconds]")
    assert _last_x(page, "celo2") == pytest.approx(2.0)
    assert _last_x(page, "adamw") == pytest.approx(1.0)
    _click(page, "#axis [data-choice=tokens]")
    assert _last_x(page, "celo2") == 256_000
    assert _find(page, "#axis [aria-pressed=true]").get_attribute("data-choice") == "tokens"
    _choose(page, "conv@tiny")  # which has no tokens
    assert _last_x(page, "celo2") == 1000
    assert not _find(page, "#axis [data-choice=tokens]").is_enabled()


def test_buttons_change_the_curve_and_the_scale(page):
    _choose(page, "conv@tiny")
    _click(page, "#kind [data-choice=train]")
    assert _title(page) == "training loss"
    kind = "return document.getElementById('curves')._fullLayout.yaxis.type"
    assert page.execute_script(kind) == "log"
    _click(page, "#log")
    assert page.execute_script(kind) == "linear"


def test_click_in_the_legend_hides_a_curve_with_its_band_also_of_the_next_task(page):
    _click(page, "#curves .legend .traces:nth-of-type(1) .legendtoggle")
    _wait(page, "document.querySelectorAll('#curves .scatterlayer .trace').length === 6")
    _choose(page, "conv@tiny")
    assert _traces(page) == 6
    _click(page, "#curves .legend .traces:nth-of-type(1) .legendtoggle")
    _wait(page, "document.querySelectorAll('#curves .scatterlayer .trace').length === 8")


def test_dragging_zooms_and_another_axis_shows_all_again(page):
    from selenium.webdriver import ActionChains

    layout = "document.getElementById('curves')._fullLayout.xaxis.range"
    before = page.execute_script(f"return {layout}")
    plot = _find(page, "#curves .nsewdrag")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(page).move_to_element_with_offset(plot, -100, -50).click_and_hold().move_by_offset(
        200, 100
    ).release().perform()
    _wait(page, f"{layout}[0] > 100 && {layout}[1] < 900")
    _click(page, "#axis [data-choice=seconds]")
    low, high = page.execute_script(f"return {layout}")
    assert low <= 0
    assert high >= 2.0
    _click(page, "#axis [data-choice=steps]")
    assert page.execute_script(f"return {layout}") == pytest.approx(before)


def test_click_on_a_head_sorts_by_numbers(page):
    """ "never" counts as 0, which its text would not."""
    assert _column(page, "summary", 1) == ["celo2", "muon", "adamw", "celo2-base"]
    _click(page, "#summary th:nth-child(7) button")
    assert _column(page, "summary", 7) == ["never", "1.00×", "1.04×", "1.09×"]
    _click(page, "#summary th:nth-child(7) button")
    assert _column(page, "summary", 1) == ["celo2", "muon", "adamw", "celo2-base"]
    assert _find(page, "#summary th:nth-child(7)").get_attribute("aria-sort") == "descending"


def test_sorting_by_keyboard_puts_infinity_last(page):
    from selenium.webdriver.common.keys import Keys

    _choose(page, "conv@tiny")
    head = next(
        button
        for button in page.find_elements("css selector", "#speed-1 th button")
        if "decade off" in button.text
    )
    head.send_keys(Keys.ENTER)
    assert _column(page, "speed-1", 5)[-1] == "∞"
    head.send_keys(Keys.ENTER)
    assert _column(page, "speed-1", 5)[0] == "∞"


def test_phone_has_no_horizontal_scroll(page):
    phone = {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    figures = "[...document.querySelectorAll('.plot .main-svg')]"
    _wait(page, f"{figures}.length && {figures}.every(svg => svg.clientWidth < 360)")  # drawn anew
    _wait(page, "window.innerWidth === 360")  # which follows what is widest, a moment later
    widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert page.execute_script(widths) == [360, 360]


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_page_of_one_task_fits_its_window(driver, tmp_path, width, height):
    runs = [run for run in make_suite() if run.spec.task == "conv@tiny"]
    device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    driver.get(write_report(runs, tmp_path)["report"].as_uri())
    _wait(driver, "document.querySelectorAll('#curves .scatterlayer .trace').length === 8")
    _wait(driver, f"window.innerWidth === {width}")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    assert not _find(driver, "#task").is_displayed()
    assert _title(driver) == "validation loss"
    script = "return [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
    if width == 1280:  # no table is cut
        assert max(driver.execute_script(script)) <= 0


def test_figures_follow_the_colour_scheme(page):
    light = page.execute_script(INK)
    _prefer(page, "dark")
    _wait(page, f"{INK.removeprefix('return ')} !== '{light}'")
    assert page.execute_script(INK) == page.execute_script("return getComputedStyle(document.body).color")
