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
        str, typer.Option(help="use; or admin, which may also manage adapters.")
    ] = "use",
    name: Annotated[str, typer.Option(help="A name for it, such as its user.")] = "",
    *,
    flags: SessionFlags,
) -> None:
    """Make a key. It is shown only once; its hash is stored."""
    session = begin(flags)
    key, token = KeyStore(session.workspace).new(cast(KeyScope, scope), name)
    session.show({"key": token, **_described(key)}, token)
    revoke = f"onebase keys revoke {key.id}{session.workspace.option}"
    note(
        say(
            f"Key {key.id} with scope {key.scope}. Copy it now: it is not shown again. Revoke it with: "
            f"{revoke}",
            f"密钥 {key.id}，权限 {key.scope}。请立即复制：不会再次显示。吊销：{revoke}",
        )
    )


@keys_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """Every key's id, name and scope."""
    session = begin(flags)
    keys = [_described(key) for key in KeyStore(session.workspace).all()]
    session.table(
        {"keys": keys},
        ["id", say("name", "名称"), say("scope", "权限"), say("created", "创建时间")],
        [[key["id"], key["name"], key["scope"], moment(key["created"])] for key in keys],
        empty=say(
            "No keys yet. Make one: onebase keys new", "暂无密钥。创建一个：onebase keys new"
        ),
    )


@keys_app.command("revoke")
def revoke_command(
    key: Annotated[str, typer.Argument(help="The key's id, as list shows it.")],
    *,
    flags: SessionFlags,
) -> None:
    """Refuse a key from now on, in running servers too."""
    session = begin(flags)
    revoked = KeyStore(session.workspace).revoke(key)
    session.show(_described(revoked), say(f"revoked {revoked.id}", f"已吊销 {revoked.id}"))


def _described(key: ApiKey) -> dict[str, str]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}
