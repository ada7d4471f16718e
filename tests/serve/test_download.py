"""Downloads from a real HTTPS server on this machine: limits, redirects, names, deadlines."""

import contextlib
from http import server as http_server
import socket
import ssl
import subprocess
import threading
import time

import pytest

from vr_jax.serve import download, request_error

CONTENT = bytes(range(256)) * 40
LEAST, MOST = 100, len(CONTENT)


class _Handler(http_server.BaseHTTPRequestHandler):
  """Answers by the path. visited: paths of all requests. host: of the last one."""

  protocol_version = "HTTP/1.1"
  visited: list[str]
  host = ""

  def do_GET(self) -> None:
    self.visited.append(self.path)
    type(self).host = self.headers["Host"]
    self.close_connection = True
    if self.path == "/moved":
      self._head(302, {"Location": "/whole?a=1", "Content-Length": "0"})
    elif self.path == "/chunked":
      self._head(200, {"Transfer-Encoding": "chunked"})
      for place in range(0, len(CONTENT), 4096):
        piece = CONTENT[place : place + 4096]
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
      self.wfile.write(b"0\r\n\r\n")
    elif self.path == "/endless":
      self._head(200, {"Content-Length": "1000000"})
      with contextlib.suppress(OSError):
        while True:
          self.wfile.write(b"x")
          time.sleep(0.02)
    else:
      short = self.path == "/short"
      self._head(200, {} if self.path == "/unsized" else {"Content-Length": str(len(CONTENT))})
      self.wfile.write(CONTENT[: len(CONTENT) // 2] if short else CONTENT)
      if self.path == "/unsized":
        self.connection.unwrap()  # the end of the file, as TLS tells it

  def _head(self, status: int, headers: dict[str, str]) -> None:
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.end_headers()

  def log_message(self, *words) -> None:
    del words


class _Server(http_server.ThreadingHTTPServer):
  """Says nothing about clients that end a connection, which are part of the tests."""

  def handle_error(self, request, client_address) -> None:
    del request, client_address


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
  """A certificate of videos.example, and its key."""
  folder = tmp_path_factory.mktemp("certificate")
  words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
  words += " -keyout key.pem -out cert.pem -subj /CN=videos.example"
  words += " -addext subjectAltName=DNS:videos.example"
  subprocess.run(words.split(), cwd=folder, check=True, capture_output=True)
  return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def server(certificate, monkeypatch):
  """A server of videos.example, whose certificate is trusted here."""
  monkeypatch.setattr(_Handler, "visited", [], raising=False)
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(*certificate)
  server = _Server(("127.0.0.1", 0), _Handler)
  server.socket = context.wrap_socket(
    server.socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
  )
  thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
  thread.start()
  monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def _fetch(server, path, *, host="videos.example", most=MOST, seconds=30.0):
  port = server.server_address[1]
  url = f"https://{host}:{port}{path}"
  return download.fetch_from("127.0.0.1", url, "the video", most, seconds=seconds)


@pytest.mark.parametrize("path", ["/whole?a=1", "/chunked", "/unsized"])
def test_a_file_comes_whole_from_the_address_that_was_looked_up(server, path):
  assert _fetch(server, path) == CONTENT
  assert _Handler.visited == [path]
  assert _Handler.host == f"videos.example:{server.server_address[1]}"


@pytest.mark.parametrize("path", ["/whole", "/chunked", "/endless"])
def test_a_file_above_the_limit_is_too_large(server, path):
  with pytest.raises(request_error.RequestError, match="the video: has more than") as caught:
    _fetch(server, path, most=LEAST if path == "/endless" else MOST - 1)
  assert caught.value.status == 413


def test_a_redirect_is_not_followed(server):
  with pytest.raises(request_error.RequestError, match="answers with status 302"):
    _fetch(server, "/moved")
  assert _Handler.visited == ["/moved"]


def test_a_file_that_is_cut_off_is_refused(server):
  with pytest.raises(request_error.RequestError, match="can't be fetched"):
    _fetch(server, "/short")


def test_a_certificate_of_another_name_or_of_nobody_known_is_refused(server, monkeypatch):
  with pytest.raises(request_error.RequestError, match="SSLCertVerificationError"):
    _fetch(server, "/whole", host="other.example")
  monkeypatch.delenv("SSL_CERT_FILE")
  with pytest.raises(request_error.RequestError, match="SSLCertVerificationError"):
    _fetch(server, "/whole")
  assert _Handler.visited == []


def test_a_server_that_sends_a_byte_now_and_then_meets_a_deadline(server):
  begun = time.monotonic()
  with pytest.raises(request_error.RequestError, match="TimeoutError"):
    _fetch(server, "/endless", most=1 << 20, seconds=0.3)
  assert time.monotonic() - begun < 10


def test_a_server_that_says_nothing_meets_the_deadline_too():
  with socket.create_server(("127.0.0.1", 0)) as silent:
    url = f"https://videos.example:{silent.getsockname()[1]}/a.mp4"
    begun = time.monotonic()
    with pytest.raises(request_error.RequestError, match="TimeoutError"):
      download.fetch_from("127.0.0.1", url, "the video", MOST, seconds=0.3)
    assert time.monotonic() - begun < 10
