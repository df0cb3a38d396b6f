"""`onebase keys`: who may use a server."""

from dataclasses import asdict
from typing import Annotated, cast

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.session import begin
from onebase.language import say
from onebase.serving.keys import ApiKey, KeyScope, KeyStore

keys_app = typer.Typer(help="API keys of the server.")


@keys_app.command("new")
def new_command(
    scope: Annotated[str, typer.Option(help="use, or admin for adapters too.")] = "use",
    name: Annotated[str, typer.Option(help="Whom or what it is for.")] = "",
    *,
    flags: SessionFlags,
) -> None:
    """Make a key. It is shown this once; its hash is kept."""
    session = begin(flags)
    key, token = KeyStore(session.workspace).new(cast(KeyScope, scope), name)
    session.show({"key": token, **_described(key)}, token)


@keys_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """Every key's id, name and scope."""
    session = begin(flags)
    keys = [_described(key) for key in KeyStore(session.workspace).all()]
    columns = ["id", "name", "scope", "created"]
    session.table({"keys": keys}, columns, [[key[column] for column in columns] for key in keys])


@keys_app.command("revoke")
def revoke_command(
    key: Annotated[str, typer.Argument(help="The key's id, as list shows it.")],
    *,
    flags: SessionFlags,
) -> None:
    """Refuse a key from now on, in running servers too."""
    session = begin(flags)
    gone = KeyStore(session.workspace).revoke(key)
    session.show(_described(gone), say(f"revoked {gone.id}", f"已吊销 {gone.id}"))


def _described(key: ApiKey) -> dict[str, str]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}
