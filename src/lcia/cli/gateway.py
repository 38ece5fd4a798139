"""``lcia gateway``: route by content before other servers."""

from pathlib import Path
from typing import Annotated

import typer

from lcia.cli.serve import (
    ApiKeyFile,
    CorsOrigin,
    Drain,
    Host,
    Megabytes,
    Port,
    access_of,
    log_with_times,
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(gateway)


def gateway(
    upstreams: Annotated[
        list[str], typer.Option("--upstream", help="Address of a server; repeatable.")
    ],
    store: Annotated[Path, typer.Option("--store", help="The assistant that routes.")],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key_file: ApiKeyFile = None,
    upstream_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that the servers want.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="What the servers call the model without adapters.")
    ] = None,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync",
            help="Keep vLLM servers at the current version: load its adapters there, move traffic "
            "once all have them, unload the earlier ones.",
        ),
    ] = False,
    sync_folder: Annotated[
        Path | None,
        typer.Option(
            help="Where the adapters are written that the servers read; STORE/vllm by default."
        ),
    ] = None,
    sync_seen_as: Annotated[
        str | None, typer.Option(help="What the servers call that folder, if it is mounted there.")
    ] = None,
    max_body_mb: Megabytes = 32.0,
    timeout: Annotated[float, typer.Option(help="Longest silence of a server in seconds.")] = 300.0,
    drain: Drain = 60.0,
    cors_origin: CorsOrigin = None,
) -> None:
    """Route by content before vLLM or other servers.

    Each request goes to its group, on OpenAI-compatible servers with named adapters: vLLM, see
    'lcia export', or 'lcia serve' itself.

    Examples:

      lcia gateway --upstream http://gpu1:8000 --upstream http://gpu2:8000 --store assistant

      lcia gateway --sync --upstream http://gpu1:8000 --store assistant
    """
    from lcia.serving import check_installed

    check_installed()
    from lcia.errors import ConfigError
    from lcia.serving.config import read_api_keys
    from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
    from lcia.serving.gateway.upstreams import check_url
    from lcia.serving.http.server import listen, run
    from lcia.serving.live import LiveStore

    if not sync and (sync_folder or sync_seen_as):
        raise ConfigError("--sync-folder and --sync-seen-as: belong to --sync; add it.")
    config = GatewayConfig(
        upstreams=[check_url(url) for url in upstreams],
        access=access_of(store, host, port, api_key_file, max_body_mb, drain, cors_origin),
        upstream_key=read_api_keys(upstream_key_file)[0] if upstream_key_file else None,
        base_model=base_model,
        timeout_s=timeout,
        sync_folder=(sync_folder or store / "vllm") if sync else None,
        sync_seen_as=sync_seen_as,
    )
    log_with_times()
    listening = listen(config.access)
    live = LiveStore(store, served_here=False)
    run(build_gateway(Gateway(live, config=config)), config.access, listening)
