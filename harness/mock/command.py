"""The command line of the mock: `harness mock`, and `python -m harness.mock`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from harness.errors import ConfigError, EngineError
from harness.mock.latency import built_in_profiles, load_profile
from harness.mock.script import Script, load_script


@click.group(invoke_without_command=True, short_help="Serve a mock LLM API that logs what it really sent.")
@click.pass_context
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option(
    "--profile",
    default="demo",
    show_default=True,
    help=f"Latency: {', '.join(built_in_profiles())}, or a YAML file.",
)
@click.option("--faults", type=click.Path(path_type=Path), help="YAML file of what goes wrong.")
@click.option("--seed", default=0, show_default=True, help="Same seed and request ids: same latencies.")
@click.option(
    "--api-key",
    envvar="HARNESS_MOCK_API_KEY",
    show_envvar=True,
    help="The only bearer key accepted. Default: any, or none.",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    help="TLS: certificate chain (PEM); `expired` or `self-signed`: made on the spot, without --key.",
)
@click.option("--key", type=click.Path(path_type=Path), help="TLS: its private key (PEM).")
@click.option("--truth", type=click.Path(path_type=Path), help="Write the truth log here at the end (JSONL).")
@click.option("--spans", type=click.Path(path_type=Path), help="Write SERVER spans here (OTLP JSON lines).")
@click.option("--truth-requests", default=200_000, show_default=True, type=click.IntRange(1))
@click.option("--drain", default=10.0, show_default=True, help="Seconds for open answers after SIGTERM.")
@click.option("--batch-window", default=86_400.0, show_default=True, help="Seconds that a batch may take.")
@click.option("--batch-stage", default=0.05, show_default=True, help="Seconds of validating, finalizing, …")
@click.option("--task-slots", default=8, show_default=True, type=click.IntRange(1), help="Tasks at a time.")
@click.option("--die-with-parent", is_flag=True, help="Stop when the process that started this one is gone.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@click.option("--print-url", is_flag=True, help="Print the bare URL when listening, instead of JSON.")
def mock(  # noqa: PLR0917 - click calls it by name
    context: click.Context,
    host: str,
    port: int,
    profile: str,
    faults: Path | None,
    seed: int,
    api_key: str | None,
    certificate: Path | None,
    key: Path | None,
    truth: Path | None,
    spans: Path | None,
    truth_requests: int,
    drain: float,
    batch_window: float,
    batch_stage: float,
    task_slots: int,
    die_with_parent: bool,
    workers: int,
    print_url: bool,
) -> None:
    """Serve a mock LLM API that keeps a log of what it really sent, and when.

    One line on stdout says where, once it is listening; SIGTERM or Ctrl-C drains and ends it.
    """
    if context.invoked_subcommand is not None:
        return
    # Loaded here, so that `harness --help` does not pay for the server.
    from harness.mock.app import Behaviour  # noqa: PLC0415 - see above
    from harness.mock.server import Options, serve  # noqa: PLC0415 - see above

    try:
        script = Script() if faults is None else load_script(faults)
        behaviour = Behaviour(
            profile=load_profile(profile),
            rules=script.rules,
            limits=script.limits,
            tls=certificate is not None,
            workers=workers,
            seed=seed,
            api_key=api_key,
            truth_requests=truth_requests,
            batch_window_s=batch_window,
            batch_stage_s=batch_stage,
            task_slots=task_slots,
        )
        options = Options(
            behaviour=behaviour,
            host=host,
            port=port,
            certificate=certificate,
            key=key,
            truth_file=truth,
            spans_file=spans,
            drain_s=drain,
            die_with_parent=die_with_parent,
        )
        serve(
            options,
            lambda told: click.echo(told.url if print_url else msgspec.json.encode(told)),
        )
    except ConfigError as error:
        click.echo(f"harness mock: {error}", err=True)
        sys.exit(2)
    except EngineError as error:
        click.echo(f"harness mock: {error}", err=True)
        sys.exit(1)
