"""`onebase keys`: the API keys of the server."""

from dataclasses import asdict
from typing import Annotated, cast

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.session import begin, note
from onebase.cli.units import moment
from onebase.language import say
from onebase.serving.keys import ApiKey, KeyScope, KeyStore

keys_app = typer.Typer(help="API keys of the server.")


@keys_app.command("new")
def new_command(
    scope: Annotated[
        str, typer.Option(help="use, or admin (may also manage adapters over HTTP).")
    ] = "use",
    name: Annotated[str, typer.Option(help="A name for the key, such as its user.")] = "",
    *,
    flags: SessionFlags,
) -> None:
    """Create a key. It is shown only once; only its hash is stored."""
    session = begin(flags)
    key, token = KeyStore(session.workspace).new(cast(KeyScope, scope), name)
    session.show({"key": token, **_described(key)}, token)
    revoke = f"onebase keys revoke {key.id}{session.workspace.option}"
    note(
        say(
            f"Key {key.id} with scope {key.scope}. Copy it now: it is not shown again. Revoke it with: "
            f"{revoke}",
            f"密钥 {key.id}，权限 {key.scope}。请立即复制，密钥不会再次显示。吊销命令：{revoke}",
        )
    )


@keys_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """List the id, name and scope of every key."""
    session = begin(flags)
    keys = [_described(key) for key in KeyStore(session.workspace).all()]
    create = f"onebase keys new{session.workspace.option}"
    session.table(
        {"keys": keys},
        ["id", say("name", "名称"), say("scope", "权限"), say("created", "创建时间")],
        [[key["id"], key["name"], key["scope"], moment(key["created"])] for key in keys],
        empty=say(f"No keys yet. Create one: {create}", f"暂无密钥。创建一个：{create}"),
    )


@keys_app.command("revoke")
def revoke_command(
    key: Annotated[str, typer.Argument(help="The id of the key, from `onebase keys list`.")],
    *,
    flags: SessionFlags,
) -> None:
    """Delete a key; running servers refuse it at once."""
    session = begin(flags)
    revoked = KeyStore(session.workspace).revoke(key)
    session.show(_described(revoked), say(f"revoked {revoked.id}", f"已吊销 {revoked.id}"))


def _described(key: ApiKey) -> dict[str, str]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}
