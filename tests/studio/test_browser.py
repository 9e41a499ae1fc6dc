"""The page as people use it, in a real browser: at the width of a desktop and of a phone, and without any network."""
import json
import shutil
import time

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="the browser's walk needs selenium: pip install selenium")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("studio"),
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")),
                       reason="the browser's walk needs Debian's packages chromium and chromium-driver"),
]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
"""The last: no name is resolved, so that whatever the page wants from elsewhere fails."""
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Walk:
    """A browser on the page."""

    def __init__(self, url, size, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        width, height = size
        for flag in (*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.opened = time.perf_counter()
        self.driver.get(url)
        self.url = url

    def wait(self, condition, seconds=60):
        # The page is drawn anew while it is looked at.
        waits = WebDriverWait(self.driver, seconds, 0.05, [StaleElementReferenceException])
        return waits.until(lambda _: condition())

    def shown(self, selector, text=None):
        """The elements that are to be seen, with a text."""
        found = [one for one in self.driver.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]
        return [one for one in found if text is None or one.text.strip() == text]

    def press(self, text, number=0, pause=0.3):
        button = self.wait(lambda: self.shown("button.lg", text))[number]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        time.sleep(pause)
        button.click()

    def tab(self, text):
        self.wait(lambda: self.shown("button[role=tab]"))
        self.driver.execute_script("window.scrollTo(0, 0)")
        tabs = self.shown("button[role=tab]", text)
        # On a phone the tabs that do not fit are behind a button.
        if not tabs:
            self.shown(".overflow-menu > button")[0].click()
            tabs = self.wait(lambda: self.shown(".overflow-dropdown button", text))
        tabs[0].click()

    def says(self, text):
        return self.wait(lambda: text in self.driver.find_element(By.TAG_NAME, "body").text)

    def type(self, label, value):
        """Types into the number beside a slider, or a text field."""
        field = self.driver.find_element(By.CSS_SELECTOR, f"input[aria-label*='{label}'], textarea[aria-label*='{label}']")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def requests(self):
        """The addresses of all that the page asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:", "chrome"))]


@pytest.fixture(params=SIZES)
def walk(request, studio, tmp_path):
    walk = Walk(studio.url, SIZES[request.param], tmp_path / "profile")
    yield walk
    walk.driver.quit()


def pictures(walk):
    """The pictures of the gallery that are loaded."""
    return [one for one in walk.shown(".thumbnail-item img") if one.get_property("naturalWidth")]


def test_first_pictures_come_soon(walk):
    """Under 4 s after the page is opened, the next under 1 s, on two cores that have nothing else to do; here five times that."""
    walk.press("Make", pause=0)
    walk.wait(lambda: len(pictures(walk)) == 4)
    first = time.perf_counter() - walk.opened
    walk.type("Seed", 7)
    clock = time.perf_counter()
    walk.press("Make", pause=0)
    walk.wait(lambda: any("seed 7" in one.text for one in walk.shown(".caption-label")))
    walk.wait(lambda: len(pictures(walk)) == 4)
    then = time.perf_counter() - clock
    print(f"\nfirst pictures {first:.2f} s after the page was opened, the next {then:.2f} s after Make")
    assert first < 20 and then < 5


def test_the_path_of_a_picture(walk):
    walk.tab("Lab")
    walk.press("path")
    walk.wait(lambda: len(walk.shown(".studio table img")) == 2 * 11)
    walk.says("step 50, σ/α ")
    walk.wait(lambda: walk.shown("a[download$='path.gif']"))
    assert walk.driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_a_walk(walk):
    """It makes a picture, moves sliders, paints a mask, stops a run, sees an error, looks at reports; all of it offline."""
    # It makes pictures.
    walk.press("Make")
    walk.wait(lambda: len(walk.shown(".thumbnail-item img")) == 4)
    # It moves a slider of the form and one of the lab.
    slider = walk.shown("input[type=range][aria-label*='Number']")[0]
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    walk.press("Make")
    walk.wait(lambda: len(walk.shown(".thumbnail-item img")) == 1)
    walk.tab("Lab")
    slider = walk.wait(lambda: walk.shown("input[type=range][aria-label*='guidance']"))[0]
    walk.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    ActionChains(walk.driver).move_to_element(slider).click().perform()
    walk.says("guidance ")
    walk.wait(lambda: walk.shown(".studio table img"))
    # It paints a mask.
    walk.tab("Make")
    walk.press("Edit the chosen picture")
    walk.tab("Edit")
    walk.says("Edits: 0")
    canvas = walk.wait(lambda: walk.shown("canvas"))[0]
    walk.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    time.sleep(2)
    stroke = ActionChains(walk.driver).move_to_element_with_offset(canvas, -30, -30).click_and_hold()
    for _ in range(6):
        stroke = stroke.move_by_offset(8, 8)
    stroke.release().perform()
    time.sleep(1)
    walk.press("Make it anew")
    walk.says("Edits: 1")
    walk.press("Undo")
    walk.says("Edits: 0")
    # It stops a run.
    walk.tab("Make")
    walk.type("Number", 64)
    walk.type("Steps", 250)
    walk.press("Make")
    walk.says("Begins")
    walk.press("Stop")
    walk.says("Stopped.")
    # It sees an error, which is a line of the library's.
    walk.type("Number", 1)
    walk.type("Steps", 10)
    walk.driver.execute_script("window.scrollTo(0, 0)")
    walk.shown("button.label-wrap")[0].click()  # how to sample
    walk.wait(lambda: walk.shown("input[aria-label*='φ']"))
    walk.type("φ", 0.5)
    walk.press("Make")
    walk.says("is of guidance, which is 1 here, none: give guidance too")
    # It looks at reports.
    walk.tab("Look")
    walk.wait(lambda: len(walk.shown("iframe")) == 2)
    assert walk.requests() and all(url.startswith(walk.url) for url in walk.requests())
