"""nginx and vllm-router, with the duties that a gateway has as far as they can have them."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench.host import BenchError, Server, answers, free_port, process_tree, until
from tests.bench.load import KEY
from tests.bench.workshop import Target, Workshop

START_DEADLINE_S = 60.0

# One worker; a pool of upstream connections; a key, a request id and a JSON log line for each
# request; answers are passed on as they come. It reads no body.
NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;
worker_rlimit_nofile {files}; user {user};
events {{ worker_connections {files}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  log_format json escape=json '{{"t":"$msec","id":"$request_id","m":"$request_method",'
    '"u":"$request_uri","s":$status,"b":$body_bytes_sent,"rt":$request_time,'
    '"up":"$upstream_addr"}}';
  keepalive_requests 1000000; keepalive_timeout 300; tcp_nodelay on;
  client_max_body_size 64m; client_body_buffer_size 1m;
  upstream backend {{
    server 127.0.0.1:{backend_port}; keepalive 512; keepalive_requests 1000000;
  }}
  map $http_authorization $known {{ default 0; "Bearer {key}" 1; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    access_log {folder}/access.log json;
    location / {{
      if ($known = 0) {{ return 401; }}
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Request-Id $request_id; add_header X-Request-Id $request_id;
      proxy_buffering off; proxy_request_buffering on; proxy_read_timeout 600;
      proxy_next_upstream error timeout;
    }}
  }}
}}
"""


def rival_folder() -> Path:
    """Return where prepare.sh puts what is installed for the benchmark alone."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "rolemesh", "bench").absolute()


def nginx_program() -> Path:
    """Return nginx's program; raises BenchError without one."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        msg = "nginx is not installed; `make bench` as root installs it"
        raise BenchError(msg)
    return Path(found)


def vllm_router_python() -> Path:
    """Return the interpreter that has vllm-router; raises BenchError without one."""
    python = rival_folder() / "vllm-router" / "bin" / "python"
    if not python.exists():
        msg = f"no vllm-router in {python.parents[1]}; `make bench` installs it"
        raise BenchError(msg)
    return python


@contextlib.contextmanager
def nginx(workshop: Workshop) -> Iterator[Target]:
    """Run nginx."""
    folder, port = workshop.folder / "nginx", free_port()
    folder.mkdir()
    text = NGINX_CONF.format(
        folder=folder,
        port=port,
        backend_port=workshop.backend_port,
        key=KEY,
        files=16384,
        user="root" if os.geteuid() == 0 else "nobody",
    )
    (folder / "nginx.conf").write_text(text)
    command = (nginx_program(), "-c", folder / "nginx.conf", "-e", folder / "error.log")
    server = Server(command, cores=workshop.cores.proxy, log=workshop.log("nginx"))
    with _running(server, port, path="/nothing", accepted=401):
        yield Target(name="nginx", port=port, clocks=tuple(process_tree(server.pid)))


@contextlib.contextmanager
def vllm_router(workshop: Workshop) -> Iterator[Target]:
    """Run vllm-router, which checks no key here."""
    port, metrics_port = free_port(), free_port()
    command = (
        *(vllm_router_python(), "-m", "vllm_router.launch_router"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{workshop.backend_port}"),
        *("--policy", "round_robin", "--log-level", "warning"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
    )
    server = Server(command, cores=workshop.cores.proxy, log=workshop.log("vllm-router"))
    with _running(server, port, path="/health"):
        yield Target(name="vllm-router", port=port, clocks=tuple(process_tree(server.pid)))


@contextlib.contextmanager
def _running(server: Server, port: int, *, path: str, accepted: int = 200) -> Iterator[None]:
    def ready() -> bool:
        server.check()
        return answers(port, path, accepted=accepted)

    try:
        until(ready, what=f"an answer; see {server.log}", deadline_s=START_DEADLINE_S)
        yield
    finally:
        server.stop()
