"""``lcia serve``: an assistant as an OpenAI-compatible server."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.store import StorePath

if TYPE_CHECKING:
    from lcia.serving.config import AccessConfig, ServeConfig

Host = Annotated[str, typer.Option(help="Address to listen on; others than loopback need keys.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="File of API keys that may do all, one per line. See 'lcia keys add'."),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        min=16,
        help="Tokens of prompt and answer together; default: 2048, or what the model reads.",
    ),
]
CacheMemory = Annotated[
    float | None,
    typer.Option(
        min=0.001, help="Gigabytes for keys and values of all answers; default: a quarter of free."
    ),
]
Megabytes = Annotated[float, typer.Option(help="Longest request body in megabytes.")]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", help="Origin whose web pages may ask, or '*'; repeatable."),
]
Drain = Annotated[float, typer.Option(help="Seconds that running answers have after SIGTERM.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="LCIA_DATABASE",
        help="URL of jobs, receipts and feedback; default: assistant.db in the folder.",
    ),
]
Learn = Annotated[
    bool, typer.Option("--learn", help="Take files and fine-tuning jobs; a worker learns them.")
]
TakeFeedback = Annotated[
    bool, typer.Option("--feedback", help="Keep receipts and take feedback; --learn does, too.")
]
KeepPrompts = Annotated[
    bool, typer.Option("--keep-prompts", help="Receipts hold prompts and answers.")
]
KeepDays = Annotated[
    float | None,
    typer.Option(help="Days after which prompts and answers leave receipts and the inbox.", min=0),
]
NoWorker = Annotated[
    bool, typer.Option("--no-worker", help="With --learn: 'lcia worker' runs elsewhere.")
]
Canary = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        help="Share of requests that a new version answers at first; default with --learn: 0.1, "
        "else 0, which is none.",
    ),
]
CanaryAnswers = Annotated[
    int, typer.Option(min=1, help="Answers of a new version until it gets all requests.")
]
CanaryHours = Annotated[
    float, typer.Option(help="Hours until it gets them anyway, unless its answers are worse.")
]

LearnWhen = Annotated[
    str,
    typer.Option(
        help="When accepted corrections are learned: manual, 'samples: 50', 'idle_s: 60' or "
        "'nightly 02:00'."
    ),
]
AcceptNew = Annotated[
    bool,
    typer.Option("--accept-new", help="With it: accept new corrections, but those marked."),
]
ConsolidateAfter = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Seconds without a job or an answer after which groups are joined where one adapter "
        "serves as well, see 'lcia groups consolidate'; default: never.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(serve)


def serve(
    store: StorePath,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: ApiKeyFile = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 32,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; more get 429.")
    ] = 128,
    max_context: MaxContext = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    max_adapters: Annotated[int, typer.Option(min=1, help="Idle adapters kept in memory.")] = 64,
    cache_memory: CacheMemory = None,
    max_body_mb: Megabytes = 8.0,
    dtype: Annotated[
        str | None,
        typer.Option(help="The model's dtype; default: the assistant's. See 'seed' in the docs."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until an answer is given up.")] = 300.0,
    drain: Drain = 60.0,
    cors_origin: CorsOrigin = None,
    fetch_images: Annotated[
        bool, typer.Option("--fetch-images", help="Fetch images from public web addresses.")
    ] = False,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log prompts and answers.")
    ] = False,
    learn: Learn = False,
    feedback: TakeFeedback = False,
    keep_prompts: KeepPrompts = False,
    keep_days: KeepDays = None,
    no_worker: NoWorker = False,
    canary: Canary = None,
    canary_answers: CanaryAnswers = 200,
    canary_hours: CanaryHours = 24.0,
    learn_when: LearnWhen = "manual",
    accept_new: AcceptNew = False,
    consolidate_after: ConsolidateAfter = None,
    database: DatabaseUrl = None,
) -> None:
    """Serve an assistant to OpenAI clients and browsers.

    Each request goes to the group its instruction is closest to. New versions of the assistant
    are taken up while the server runs.

    Examples:

      lcia serve assistant

      lcia serve assistant --host 0.0.0.0 --api-key-file keys.txt

      lcia serve assistant --learn
    """
    from lcia.serving import check_installed

    check_installed()
    from lcia.serving.config import ServeConfig
    from lcia.serving.engine.limits import EngineLimits

    access = access_of(store, host, port, api_key_file, max_body_mb, drain, cors_origin)
    sizes: dict[str, Any] = {"max_batch": max_batch, "max_waiting": max_waiting}
    sizes |= {"max_context": max_context, "max_adapters": max_adapters}
    limits = EngineLimits(**sizes, cache_bytes=int(cache_memory * 1e9) if cache_memory else None)
    config = ServeConfig(
        access=access,
        limits=limits,
        max_new_tokens=max_new_tokens,
        timeout_s=timeout,
        fetch_images=fetch_images,
        log_prompts=log_prompts,
    )
    share = canary if canary is not None else 0.1 * learn
    live: dict[str, Any] = {"learn": learn, "worker": not no_worker, "database": database}
    live |= {"keep_prompts": keep_prompts, "keep_days": keep_days}
    live |= {"learn_when": learn_when, "accept_new": accept_new}
    live |= {"consolidate_after": consolidate_after}
    live |= {"canary": (share, canary_answers, canary_hours) if share else None}
    _serve(store, config, dtype, live if learn or feedback or share else None)


def access_of(
    store: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    max_body_mb: float,
    drain: float,
    cors_origin: list[str] | None,
) -> "AccessConfig":
    """Return who may ask and how much, as the options of ``serve`` and ``gateway`` say."""
    from lcia.serving.config import AccessConfig, read_api_keys

    return AccessConfig(
        host=host,
        port=port,
        api_keys=read_api_keys(api_key_file) if api_key_file else (),
        assistant=store,
        max_body_bytes=int(max_body_mb * 1e6),
        drain_s=drain,
        cors_origins=tuple(cors_origin or ()),
    )


def _serve(
    store: Path, config: "ServeConfig", dtype: str | None, live: dict[str, Any] | None
) -> None:
    """Load the model and answer; ``live``: fields of ``LiveConfig``, or None for answers alone."""
    if live is not None:
        from lcia.serving import check_installed

        check_installed("live")
    import torch

    from lcia.learner import load_host
    from lcia.memory import bound_kept_memory
    from lcia.serving.http.app import build_app
    from lcia.serving.http.server import listen, run
    from lcia.serving.http.service import Service
    from lcia.serving.live import LiveStore

    bound_kept_memory()
    # GNU's OpenMP lets threads that wait fall asleep at once where more of them compute than there
    # are processors: two teams are slower than none. So the engine's thread alone has a team.
    config = replace(config, limits=replace(config.limits, threads=torch.get_num_threads()))
    torch.set_num_threads(1)
    log_with_times()
    listening = listen(config.access)
    followed = LiveStore(store)
    settings = followed.store.config
    if dtype is not None:
        settings = settings.model_copy(update={"dtype": dtype})
    service = Service(load_host(settings), followed, config=config)
    if live is None:
        run(build_app(service), config.access, listening)
        return
    from lcia.live.releases.canary import CanaryConfig
    from lcia.live.serving import LiveConfig, run_live

    if (tried := live.pop("canary")) is not None:
        live["canary"] = CanaryConfig(share=tried[0], answers=tried[1], hours=tried[2])
    run_live(service, LiveConfig(**live), listening)


def log_with_times() -> None:
    """Begin every line of the log with the time: a server's log is read long after."""
    import logging

    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
