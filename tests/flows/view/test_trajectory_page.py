"""The page of a rollout in a real browser: video, axis, frames, tokens, comparison."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from opd_core.tinyworld.world import World
from storage.runs.run import Run
from tests.flows.view.conftest import COLOURS, NARROW, WIDE, Viewed, serving
from tests.flows.view.odd_run import SCRIPT, SEEN, OddRun, frames_of, odd_run


@dataclass(frozen=True)
class Shown:
    viewed: Viewed
    odd: OddRun
    tiny: Run

    def open(self, browser: Browser, path: str, **look: object) -> Page:
        page = self.viewed.page(browser, **look)  # type: ignore[arg-type]
        page.goto(self.viewed.url(path))
        return page

    def odd_page(self, browser: Browser, what: str, query: str = "") -> Page:
        return self.open(browser, f"/odd/r/{self.odd.ids[what]}{query}")


@pytest.fixture(scope="module")
def shown(
    finished: Path, tiny_world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    odd = odd_run(finished, tiny_world, tmp_path_factory.mktemp("odd"))
    tiny = Run.open(finished.with_name("tiny"))
    with serving([odd.run, tiny]) as viewed:
        yield Shown(viewed, odd, tiny)


@pytest.fixture
def scored(shown: Shown) -> dict[str, object]:
    """The row of a rollout that was scored and trained on."""
    rows = shown.tiny.trajectories().filter(pl.col("trained")).sort("rollout_id").collect()
    return dict(rows.to_dicts()[0])


def until(page: Page, condition: str, seconds: float = 15.0) -> None:
    """Wait until it is true of the page, in JavaScript. (`wait_for_function` asks by `eval`, which
    the pages refuse.)"""
    ends = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < ends, condition
        page.wait_for_timeout(20)


def time_of(page: Page) -> float:
    return float(page.evaluate("document.querySelector('[data-video]').currentTime"))


def cursor_at(page: Page) -> float:
    """Percent of the axis."""
    return float(str(page.locator("[data-cursor]").get_attribute("x1")).removesuffix("%"))


# --- video and axis -------------------------------------------------------------------------------


def test_the_video_plays_to_the_end_of_the_span_and_the_cursor_goes_with_it(
    shown: Shown, browser: Browser
) -> None:
    page = shown.odd_page(browser, "plays")
    until(page, "document.querySelector('[data-video]').readyState >= 2")
    page.get_by_role("button", name="play student", exact=True).click()
    until(page, "!document.querySelector('[data-video]').paused")
    until(page, "document.querySelector('[data-video]').currentTime > 1.3")
    until(page, "document.querySelector('[data-video]').paused")
    assert time_of(page) == pytest.approx(2.0, abs=0.05)  # the end of the span 1.0 - 2.0
    assert cursor_at(page) == pytest.approx(50.0, abs=1.5)  # of 4 s
    assert shown.viewed.said(page) == []


def test_a_press_on_the_axis_and_the_keys_seek(shown: Shown, browser: Browser) -> None:
    page = shown.odd_page(browser, "plays")
    until(page, "document.querySelector('[data-video]').readyState >= 2")
    box = page.locator("[data-axis]").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 10)
    until(page, "Math.abs(document.querySelector('[data-video]').currentTime - 3) < 0.05")
    assert cursor_at(page) == pytest.approx(75.0, abs=1.0)
    page.mouse.move(0, 0)
    page.keyboard.press("ArrowLeft")  # to the frame that the model saw before
    until(page, "document.querySelector('[data-time]').textContent === '2.00 s'")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('[data-time]').textContent === '3.00 s'")
    page.wait_for_url("**t=3*")
    page.keyboard.press("Home")  # nothing: the axis has no focus
    page.locator("[data-axis]").press("Home")
    until(page, "document.querySelector('[data-video]').currentTime === 0")
    page.keyboard.press(" ")
    until(page, "!document.querySelector('[data-video]').paused")
    page.keyboard.press(" ")
    until(page, "document.querySelector('[data-video]').paused")
    page.locator(".play-span").first.click()
    until(page, "!document.querySelector('[data-video]').paused")
    page.keyboard.press(" ")  # pauses, and does not press the button again
    until(page, "document.querySelector('[data-video]').paused")


def test_the_axis_holds_truth_answers_and_teacher_at_their_times(
    shown: Shown, browser: Browser, scored: dict[str, object]
) -> None:
    page = shown.open(browser, f"/tiny/r/{scored['rollout_id']}")
    example = pl.col("example_id") == scored["example_id"]
    own = pl.col("policy_version") == scored["policy_version"]
    answers = shown.tiny.rollouts().filter(example & own).collect()
    asked = shown.tiny.teacher_predictions().filter(example).collect()
    names = page.locator("[data-axis] .row-name").all_text_contents()
    assert len(names) == 1 + answers.height + asked.height and answers.height == 2
    start, end, duration = (scored[k] for k in ("span_start", "span_end", "duration"))
    assert isinstance(start, float) and isinstance(end, float) and isinstance(duration, float)
    assert names[0] == f"truth: {start:.1f} – {end:.1f} s"
    bar = page.locator("[data-axis] .bar.truth")
    x, width = (str(bar.get_attribute(name)).removesuffix("%") for name in ("x", "width"))
    assert float(x) == pytest.approx(100 * start / duration, abs=0.01)
    assert float(width) == pytest.approx(100 * (end - start) / duration, abs=0.01)
    for row in answers.to_dicts():
        span = "no span"
        if row["predicted_start"] is not None:
            span = f"{row['predicted_start']:.1f} – {row['predicted_end']:.1f} s"
        assert f"student {row['sample_index']}: {span}, IoU {row['student_iou']:.2f}" in names


# --- the frames that the model saw ----------------------------------------------------------------


def test_the_frames_seen_are_those_of_the_file_at_their_stamps(
    shown: Shown, browser: Browser
) -> None:
    page = shown.odd_page(browser, "plays", "?t=2.4")
    note = page.locator("[data-frames-note]")
    expect(note).to_contain_text("exactly its pixels, decoded again")
    expect(page.locator("[data-seen-note]")).to_have_text(
        f"what the model saw: frame 3 of {len(SEEN)}, 2.00 s"
    )
    images = page.locator("[data-strip-of-frames] image")
    assert images.count() == len(SEEN)
    assert [images.nth(n).get_attribute("x") for n in range(4)] == ["0%", "25%", "50%", "75%"]
    answer = page.request.get(str(images.nth(2).get_attribute("href")))
    picture = np.asarray(Image.open(io.BytesIO(answer.body())))
    assert np.array_equal(picture, frames_of(shown.odd.videos / "plays.webm")[2])


def test_kept_frames_are_found_by_the_hash_of_their_pixels(
    shown: Shown, browser: Browser, scored: dict[str, object]
) -> None:
    page = shown.open(browser, f"/tiny/r/{scored['rollout_id']}")
    expect(page.locator("[data-frames-note]")).to_contain_text("from the frame store")


def test_other_pixels_than_were_seen_are_told(shown: Shown, browser: Browser) -> None:
    page = shown.odd_page(browser, "other pixels")
    expect(page.locator("[data-frames-note]")).to_contain_text("OTHER pixels")


@pytest.mark.parametrize("what", ["does not play", "HEVC", "MPEG-TS"])
def test_a_video_that_no_browser_plays_is_shown_as_stills(
    shown: Shown, browser: Browser, what: str
) -> None:
    page = shown.odd_page(browser, what, "?t=1.5")
    stills = page.locator("img[data-stills]")
    expect(stills).to_be_visible()
    expect(page.locator("[data-video]")).to_be_hidden()
    note = page.locator("[data-screen-note]")
    expect(note).to_contain_text("does not play the video; frame 2 of 4, 1.00 s")
    page.get_by_role("button", name="play", exact=True).click()
    expect(note).to_contain_text("frame 3 of 4")
    assert float(page.evaluate("document.querySelector('img[data-stills]').naturalWidth")) == 32
    assert cursor_at(page) >= 50.0


def test_a_video_that_is_gone_is_told_with_the_fix(shown: Shown, browser: Browser) -> None:
    page = shown.odd_page(browser, "gone")
    said = page.get_by_role("alert").inner_text()
    assert "gone.webm is gone; put it back" in said
    expect(page.locator("[data-frames-note]")).to_contain_text("cannot be shown")


def test_of_a_video_that_is_gone_the_kept_frames_are_shown(shown: Shown, browser: Browser) -> None:
    page = shown.odd_page(browser, "gone, kept", "?t=2.2")
    assert "gone, kept.webm is gone" in page.get_by_role("alert").inner_text()
    expect(page.locator("[data-frames-note]")).to_contain_text("from the frame store")
    expect(page.locator("[data-screen-note]")).to_have_text("no video; frame 3 of 4, 2.00 s")
    expect(page.locator("img[data-stills]")).to_be_visible()


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_shows_its_three_log_probs_when_pointed_at(
    shown: Shown, browser: Browser, scored: dict[str, object]
) -> None:
    page = shown.open(browser, f"/tiny/r/{scored['rollout_id']}")
    lists = [scored[f"{kind}_logprobs"] for kind in ("sampling", "student", "teacher")]
    assert all(isinstance(values, list) for values in lists)
    for place in (0, 5):
        page.locator(f"[data-strip] [data-token='{place}']").hover()
        shown_numbers = page.locator("[data-detail] [data-fact] td").all_inner_texts()
        expected = [values[place] for values in lists]  # type: ignore[index]
        assert [float(text) for text in shown_numbers[:3]] == pytest.approx(expected, abs=6e-5)
        advantage = expected[2] - expected[0]
        assert float(shown_numbers[3]) == pytest.approx(advantage, abs=6e-5)
    assert page.locator("[data-detail] .top tr").count() == 8  # score.teacher_topk


def test_tokens_are_coloured_by_what_the_teacher_says(
    shown: Shown, browser: Browser, scored: dict[str, object]
) -> None:
    page = shown.open(browser, f"/tiny/r/{scored['rollout_id']}")
    sampling, teacher = scored["sampling_logprobs"], scored["teacher_logprobs"]
    assert isinstance(sampling, list) and isinstance(teacher, list)
    reds = []
    for place, (p, q) in enumerate(zip(sampling, teacher, strict=True)):
        token = page.locator(f"[data-strip] [data-token='{place}']")
        classes = str(token.get_attribute("class"))
        assert ("far-" in classes) == (q - p <= -0.05), (place, q - p)
        assert ("near-" in classes) == (q - p >= 0.05), (place, q - p)
        if q - p <= -0.05:
            reds.append((p - q, token.evaluate("e => getComputedStyle(e).backgroundColor")))
    assert reds  # else this rollout tells nothing


def test_arrow_keys_move_between_tokens_and_the_address_follows(
    shown: Shown, browser: Browser, scored: dict[str, object]
) -> None:
    address = f"/tiny/r/{scored['rollout_id']}?t=6.4&token=3"
    page = shown.open(browser, address)
    assert page.locator("[data-detail] h3").inner_text().startswith("token 3:")
    until(page, "document.querySelector('[data-time]').textContent === '6.40 s'")
    page.locator("[data-strip] [data-token='3']").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-detail] h3").inner_text().startswith("token 4:")
    page.wait_for_url("**token=4*")
    assert "t=6.4" in page.url
    page.reload()
    assert page.locator("[data-detail] h3").inner_text().startswith("token 4:")


# --- beside it ------------------------------------------------------------------------------------


def test_two_policies_stand_side_by_side(shown: Shown, browser: Browser) -> None:
    page = shown.odd_page(browser, "plays")
    table = page.locator(".versions")
    assert table.locator("tbody tr").count() == 2
    cells = table.locator("tbody tr").nth(0).locator("td").all_inner_texts()
    assert cells[0] == "0" and cells[3] == "0.5 – 3.0 s" and cells[4] == "0.40"
    bar = table.locator(".bar").first  # of policy 0, on an axis of 4 s
    assert (bar.get_attribute("x"), bar.get_attribute("width")) == ("12.5%", "62.5%")
    table.get_by_role("link", name="compare").click()
    page.wait_for_url(f"**with=odd*{shown.odd.ids['earlier']}*")
    strips = page.locator("[data-strip]")
    assert strips.count() == 2
    names = page.locator("[data-axis] .row-name").all_text_contents()
    assert names[-1] == "compared: policy 0: 0.5 – 3.0 s, IoU 0.40"
    strips.nth(1).locator(".token").first.hover()
    assert page.locator("[data-detail] h3").inner_text().startswith("token 0:")


def test_another_run_stands_beside_it(
    shown: Shown, browser: Browser, scored: dict[str, object]
) -> None:
    rollout_id = scored["rollout_id"]
    page = shown.open(browser, f"/tiny/r/{rollout_id}")
    page.get_by_role("link", name="compare with odd").click()
    page.wait_for_url("**with=odd*")
    assert page.locator("h3", has_text=f"beside: odd, {rollout_id}").count() == 1
    assert page.locator("h3", has_text="in odd").count() == 1
    page.get_by_role("link", name="compare with nothing").click()
    page.wait_for_url(f"**/{rollout_id}")
    assert page.locator("[data-strip]").count() == 1


def test_the_next_rollout_is_the_next_of_the_list_that_one_came_from(
    shown: Shown, browser: Browser
) -> None:
    page = shown.open(browser, "/tiny/rollouts?round=1&sort=tokens")
    rows = page.locator("main table tbody a[href*='/r/']").all()
    listed = [str(row.get_attribute("href")).split("/r/")[1].split("?")[0] for row in rows]
    rows[1].click()
    page.wait_for_url(f"**/r/{listed[1]}?*")
    page.wait_for_selector("a[rel=next]")
    page.keyboard.press("j")
    page.wait_for_url(f"**/r/{listed[2]}?*")
    page.wait_for_selector("a[rel=prev]")
    page.keyboard.press("k")
    page.wait_for_url(f"**/r/{listed[1]}?*")
    page.get_by_role("link", name="the list").click()
    page.wait_for_url("**/tiny/rollouts?*round=1*")
    ids = sorted(shown.tiny.rollouts().select("rollout_id").collect()["rollout_id"].to_list())
    page.goto(shown.viewed.url(f"/tiny/r/{ids[1]}"))  # of no list: in order of id
    page.wait_for_selector("a[rel=prev]")
    page.keyboard.press("k")
    page.wait_for_url(f"**/r/{ids[0]}")


# --- text stays text, and how it looks ------------------------------------------------------------


def test_a_script_in_questions_and_answers_stays_text(shown: Shown, browser: Browser) -> None:
    page = shown.odd_page(browser, "plays")
    expect(page.locator("a[rel=prev], a[rel=next]").first).to_be_visible()
    text = page.locator("main").inner_text()
    assert text.count(SCRIPT) >= 3  # sentence, answer, the teacher's answer
    assert page.title() == f"{shown.odd.ids['plays']} – odd"
    assert page.locator("main script:not([type='application/json'])").count() == 0
    assert shown.viewed.said(page) == []


def test_the_question_has_its_special_tokens_and_its_video_in_one_piece(
    shown: Shown, browser: Browser, scored: dict[str, object]
) -> None:
    page = shown.open(browser, f"/tiny/r/{scored['rollout_id']}")
    row = shown.tiny.rollouts().filter(pl.col("rollout_id") == scored["rollout_id"]).collect()
    frames = len(row.item(0, "frame_indices"))
    _, height, width = row.item(0, "grid_thw")
    tokens = row.item(0, "grid_thw")[0] * height * width // 4
    question = page.locator(".prompt").first.inner_text()
    assert question.startswith("<|im_start|>user")
    assert f"<video: {frames} frames, {tokens} tokens>" in question
    assert str(scored["query"]) in question and "<|video_pad|>" not in question


@pytest.mark.parametrize("colours", COLOURS)
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
def test_it_is_no_wider_than_the_window(
    shown: Shown,
    browser: Browser,
    scored: dict[str, object],
    size: tuple[int, int],
    colours: str,
) -> None:
    address = f"/tiny/r/{scored['rollout_id']}?token=5&with=odd"
    page = shown.open(browser, address, size=size, colours=colours)
    expect(page.locator("[data-strip-of-frames] image").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for place in (0, 5):
        contrasts = page.locator("[data-strip] .token, .tone-legend .token").evaluate_all(CONTRASTS)
        assert min(contrasts) >= 4.5, place


CONTRASTS = """tokens => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const light = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const part = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  return tokens.map(token => {
    const style = getComputedStyle(token);
    const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
}"""
