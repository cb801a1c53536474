"""`aghsan judge`: one judge, beside the control plane or on a machine of its own."""

import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path

import click

from cli import child, options
from core import errors, quiet


@click.command()
@click.option("--nats", "nats_url", required=True, help="Address of the nats-server.")
@click.option(
    "--creds",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Credentials of a judge in CONTROL.",
)
@click.option(
    "--fleet-creds",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Credentials of a judge in FLEET, where the candidates' chunks are.",
)
@click.option(
    "--key",
    required=True,
    type=options.File(),
    help="The judges' key file; made if missing. All judges of one control plane share it.",
)
@click.option(
    "--new-key",
    is_flag=True,
    help="The old key is lost: make one if the file is missing, and end void the rounds that only "
    "the old one could judge.",
)
@options.artifacts
@options.quiet_folder
@click.option("--judge-id", default="judge", show_default=True, help="Its name in the log.")
@click.option("--child", "as_child", is_flag=True, hidden=True)
@click.option("--verbose", is_flag=True, help="Say more on stderr.")
def judge(
    nats_url: str,
    creds: Path,
    fleet_creds: Path,
    key: Path,
    new_key: bool,
    artifacts: str,
    quiet_folder: Path | None,
    judge_id: str,
    as_child: bool,
    verbose: bool,
) -> None:
    """Judge candidates on hidden cases and send the verdicts."""
    child.configure_logging(verbose)
    try:
        has_key = key.exists()
        asyncio.run(
            _run(
                nats_url,
                creds,
                fleet_creds,
                artifacts,
                key,
                has_key,
                new_key,
                quiet_folder,
                judge_id,
                as_child,
            )
        )
    except errors.DataDirectoryError as error:
        if not as_child:
            raise
        logging.getLogger(__name__).error("%s", error)
        raise SystemExit(child.REFUSED) from error


async def _run(
    nats_url: str,
    creds: Path,
    fleet_creds: Path,
    artifacts: str,
    key: Path,
    has_key: bool,
    new_key: bool,
    quiet_folder: Path | None,
    judge_id: str,
    as_child: bool,
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    child.on_stop(loop, stopping.set, child=as_child)

    from agent import limits
    from core import stores
    from core.bus import Bus
    from orchestrator import judge as bench
    from orchestrator import keys

    # A model that wants more is refused; a judge that is killed for it would take it up again.
    limits.bound_memory(int(limits.memory_bytes() * limits.MEMORY_SHARE))
    async with contextlib.AsyncExitStack() as stack:

        async def connect(credentials: Path, account: str) -> Bus:
            bus = await Bus.connect(
                nats_url,
                credentials=credentials,
                name=f"aghsan-{judge_id}-{account}",
                inbox_prefix="_INBOX_judge",
            )
            stack.push_async_callback(bus.close)
            return bus

        control = await connect(creds, "control")
        committed = 0 if has_key or new_key else await bench.deposited(control, judge_id)
        secret_key = keys.load_key(key, committed)
        store = stores.store_of(await connect(fleet_creds, "fleet"), artifacts)
        # Hidden texts are the judge's alone, as its key is, and stay no longer than it.
        texts = stack.enter_context(tempfile.TemporaryDirectory(prefix="aghsan-judge-"))
        one = bench.Judge(control, store, secret_key, judge_id, Path(texts), quiet.of(quiet_folder))

        if new_key:
            await one.withdraw("the judges' key was lost")

        async def stop() -> None:
            await stopping.wait()
            one.stop()

        watching = asyncio.ensure_future(stop())
        stack.callback(watching.cancel)

        def ready() -> None:
            if as_child:
                child.tell("ready", judge_id=judge_id)
            else:
                child.say(f"judging for {nats_url} as {judge_id}; Ctrl-C ends between rounds")

        await one.run(ready)
