"""Video files and frames over HTTP: what is served, and what is not."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd_core.tinyworld.world import World
from tests.flows.view.conftest import Viewed, serving
from tests.flows.view.odd_run import OddRun, odd_run


@pytest.fixture(scope="module")
def odd(finished: Path, tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> OddRun:
    return odd_run(finished, tiny_world, tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def shown(odd: OddRun) -> Iterator[Viewed]:
    with serving([odd.run]) as viewed:
        yield viewed


def asked(shown: Viewed, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", shown.port, timeout=30)
    connection.request("GET", path, headers={"Cookie": shown.cookie(), **headers})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, {k.lower(): v for k, v in answer.getheaders()}


def video(odd: OddRun, what: str) -> str:
    return f"/odd/video/{odd.ids[what].split('-')[1]}"


def test_a_range_of_a_video_is_answered_with_that_range(odd: OddRun, shown: Viewed) -> None:
    whole = (odd.videos / "plays.webm").read_bytes()
    status, body, headers = asked(shown, video(odd, "plays"))
    assert (status, body) == (200, whole)
    assert headers["content-type"] == "video/webm" and headers["accept-ranges"] == "bytes"
    status, body, headers = asked(shown, video(odd, "plays"), Range="bytes=100-299")
    assert (status, body) == (206, whole[100:300])
    assert headers["content-range"] == f"bytes 100-299/{len(whole)}"
    assert asked(shown, video(odd, "plays"), Range="bytes=99999999-")[0] == 416
    assert asked(shown, video(odd, "does not play"))[2]["content-type"] == "video/x-msvideo"


def test_a_path_outside_of_the_videos_is_refused(odd: OddRun, shown: Viewed) -> None:
    outside = odd.videos.parent / "outside.webm"
    assert outside.exists()
    status, body, _ = asked(shown, video(odd, "outside"))
    assert status == 403 and b"outside of data.videos" in body
    assert outside.read_bytes()[:40] not in body
    status, body, _ = asked(shown, f"/odd/frames/{odd.ids['outside']}")
    assert status == 200 and b'"count":0' in body and b"outside of data.videos" in body


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "plays.webm", "..%2fplays.webm"])
def test_only_examples_name_files(shown: Viewed, name: str) -> None:
    status, body, _ = asked(shown, f"/odd/video/{name}")
    assert status == 404 and b"root:" not in body


def test_a_video_that_is_gone_is_told(odd: OddRun, shown: Viewed) -> None:
    status, body, _ = asked(shown, video(odd, "gone"))
    assert status == 404 and b"gone.webm is gone" in body


def test_there_are_as_many_frames_as_were_seen(odd: OddRun, shown: Viewed) -> None:
    status, body, headers = asked(shown, f"/odd/frame/{odd.ids['does not play']}/3")
    assert status == 200 and headers["content-type"] == "image/png"
    assert body.startswith(b"\x89PNG")
    assert asked(shown, f"/odd/frame/{odd.ids['does not play']}/4")[0] == 404
    assert asked(shown, "/odd/frame/v1-0000000000000000-0/0")[0] == 404


def test_without_the_key_no_video_is_served(odd: OddRun, shown: Viewed) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shown.port, timeout=30)
    connection.request("GET", video(odd, "plays"))
    assert connection.getresponse().status == 403
    connection.close()
