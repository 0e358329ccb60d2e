"""`foreword sign BUNDLE... --key FILE`: vouch for bundles; with `--new-key`, make the key first."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from foreword.signing import SigningKey

PASSPHRASE = "FOREWORD_KEY_PASSPHRASE"  # noqa: S105  the name of a variable


def sign(
    bundles: list[Path] = typer.Argument(None, help="Bundles, such as runs/TASK/best.prefix.", show_default=False),
    key: Path | None = typer.Option(None, "--key", help="The private key (NAME.key) to sign with."),
    new_key: Path | None = typer.Option(None, "--new-key", help="Make a key first: writes NAME.key and NAME.pub."),
    encrypt: bool = typer.Option(False, "--encrypt", help="Protect the new key with a passphrase."),
    signer: str | None = typer.Option(None, "--as", help="The name to sign by; shown as a claim, not proved."),
) -> None:
    """Sign bundles, or make a key to sign with.

    A passphrase is asked for at the terminal, or taken from FOREWORD_KEY_PASSPHRASE. Whoever puts the public key into
    their trust policy can then tell your bundles from others.
    """
    from foreword.bundle import sign_bundle
    from foreword.cli.screen import on_one_screen
    from foreword.errors import SigningError

    if (key is None) == (new_key is None) or (key is not None and (encrypt or not bundles)):
        raise SigningError(
            "It is not clear what to sign with, or what to sign.",
            expected="BUNDLE... --key NAME.key, or --new-key NAME [--encrypt] [BUNDLE...]",
            found="--key and --new-key" if key and new_key else "--key and --encrypt" if encrypt else
            "--key without a bundle" if key else "neither --key nor --new-key",
            fix="Make a key once with `foreword sign --new-key NAME`; then `foreword sign BUNDLE --key NAME.key`.",
        )  # fmt: skip
    used = _read(key) if key is not None else _made(_stem(new_key or Path()), encrypt=encrypt)
    for path in bundles or []:
        sign_bundle(path, used, signer=signer)
        typer.echo(on_one_screen(f"signed {path} with key {used.public.id}"))


def _stem(name: Path) -> Path:
    """The NAME of NAME.key and NAME.pub, where the name of one of them was given."""
    return name.with_suffix("") if name.suffix in (".key", ".pub") else name


def _made(name: Path, *, encrypt: bool) -> SigningKey:
    from foreword.cli.screen import on_one_screen
    from foreword.signing import SigningKey

    key = SigningKey.new()
    private, public = key.write(
        name, passphrase=_passphrase(f"Passphrase for {name}.key", twice=True) if encrypt else None
    )
    typer.echo(on_one_screen(f"{private}: the private key; keep it to yourself, nobody can make it again"))
    typer.echo(on_one_screen(f"{public}: the public key {key.public.id}; give it to those who load your bundles"))
    typer.echo(on_one_screen(f'for their trust policy, under [trusted]: "{name.name}" = "{key.public.text}"'))
    return key


def _read(path: Path) -> SigningKey:
    from foreword.errors import SigningError
    from foreword.signing import SigningKey

    try:
        return SigningKey.read(path, passphrase=os.environ.get(PASSPHRASE) or None)
    except SigningError as error:
        if error.expected != "a passphrase" or not sys.stdin.isatty():
            raise
    return SigningKey.read(path, passphrase=_passphrase(f"Passphrase of {path}", twice=False))


def _passphrase(question: str, *, twice: bool) -> str:
    from foreword.errors import SigningError

    given = os.environ.get(PASSPHRASE) or ""
    if not given and sys.stdin is not None and sys.stdin.isatty():
        given = str(typer.prompt(question, hide_input=True, confirmation_prompt=twice, err=True))
    if not given:
        raise SigningError(
            "There is no passphrase.",
            expected=f"one in {PASSPHRASE}, or a terminal to ask at",
            found="neither",
            fix=f"Set {PASSPHRASE}, or leave --encrypt out.",
        )
    return given
