"""The report in headless Chromium: it renders, without console message or outside request."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glass_fast.report import write_report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium found (Debian: apt-get install chromium)"
)


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture(scope="module")
def report(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run_folder, tmp_path_factory.mktemp("browser") / "report.html")


def console(stderr: str) -> list[str]:
    """Console messages of the page (the browser's own complaints about the machine are not among them)."""
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


def test_renders_without_console_message(report: Path, tmp_path: Path) -> None:
    result = chromium(tmp_path / "profile", "--dump-dom", report.as_uri())
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Comparison of methods" in result.stdout and "<footer>" in result.stdout
    assert console(result.stderr) == []


def test_console_messages_would_be_seen(tmp_path: Path) -> None:
    """The check above can fail: a page that breaks its own policy gives a console message."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><img src='http://127.0.0.1:9/x.png'><script>1</script>"
    )
    assert console(chromium(tmp_path / "profile", "--dump-dom", page.as_uri()).stderr)


def test_screenshot_shows_the_page(report: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    result = chromium(
        tmp_path / "profile", "--window-size=1280,1600", f"--screenshot={shot}", report.as_uri()
    )
    assert result.returncode == 0, result.stderr[-2000:]
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1280
    assert pixels.mean() > 200  # a light page
    assert (pixels.sum(axis=2) < 300).mean() > 0.005  # with text on it
    blue = (np.abs(pixels - np.array([0x00, 0x72, 0xB2])).sum(axis=2) < 12).mean()
    assert blue > 0.0005  # the bars of the guided method


def test_the_only_request_is_the_page_itself(report: Path, tmp_path: Path) -> None:
    """Served over HTTP, the browser asks for the file and for nothing else."""
    asked: list[str] = []
    content = report.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/report.html"
        result = chromium(tmp_path / "profile", "--dump-dom", address)
        server.shutdown()
    assert result.returncode == 0, result.stderr[-2000:]
    assert asked == ["/report.html"]
