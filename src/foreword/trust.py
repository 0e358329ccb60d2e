"""Whose bundles are taken: a trust policy, from Python, a file, or the user's configuration.

It knows keys by the names that the policy's owner gave them, and what a policy asks of a bundle whose signatures have
been checked. It deliberately checks no signature itself (`signing.py`), and believes no name that a signer claims.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from foreword.errors import SigningError, UntrustedBundleError
from foreword.regular_file import content_of, found_in
from foreword.signing import PublicKey, Signature, as_text

VARIABLE = "FOREWORD_TRUST"
POLICY_LIMIT = 2**20
FIELDS = ("require-signature", "trusted", "revoked")

Standing = Literal["trusted", "revoked", "unknown"]


@dataclass(frozen=True)
class TrustPolicy:
    """Keys that are trusted or revoked, by name, and whether a bundle must be signed by a trusted one.

    A bundle without a trusted signature is refused when `require_signature` is set, and also when one of its signatures
    is by a revoked key. `source` says where the policy came from.

    >>> TrustPolicy().refusal([]) is None, TrustPolicy(require_signature=True).refusal([])
    (True, 'no signature')
    """

    require_signature: bool = False
    trusted: Mapping[str, PublicKey] = field(default_factory=dict)
    revoked: Mapping[str, PublicKey] = field(default_factory=dict)
    source: str = "a policy given in Python"

    @classmethod
    def load(cls, path: str | Path) -> TrustPolicy:
        """The policy in a TOML file; SigningError lists everything that is wrong with it."""
        path = Path(as_text(path, "the path of a trust policy"))
        try:
            told = tomllib.loads(content_of(path, POLICY_LIMIT).decode())
        except (OSError, ValueError, RecursionError) as error:
            raise _wrong(str(path), [found_in(error)]) from error
        return _parsed(told, path)

    @classmethod
    def in_force(cls) -> TrustPolicy:
        """The policy of this user: the file that FOREWORD_TRUST names, else the one in the configuration, else none.

        A file that is named must be there: a policy is never silently left out.
        """
        if named := os.environ.get(VARIABLE):
            path = Path(os.path.expanduser(named))  # noqa: PTH111  Path's own raises for "~name" of nobody here
            return cls.load(path)
        try:
            place = user_policy()
            place.lstat()
        except (FileNotFoundError, NotADirectoryError, RuntimeError):  # RuntimeError: this user has no home
            return cls(source="no trust policy")
        except OSError:  # it cannot be seen whether there is one: let the attempt to read it say why
            pass
        return cls.load(place)

    def standing(self, signature: Signature) -> Standing:
        """What this policy thinks of the key; a key that is both trusted and revoked is revoked."""
        if signature.key in self.revoked.values():
            return "revoked"
        return "trusted" if signature.key in self.trusted.values() else "unknown"

    def name_of(self, key: PublicKey) -> str | None:
        """The name that this policy gives a key; None when it has none."""
        return next((name for name, known in [*self.trusted.items(), *self.revoked.items()] if known == key), None)

    def refusal(self, signatures: Sequence[Signature]) -> str | None:
        """Why a bundle with these signatures, all of them valid, is refused; None when it is taken."""
        standings = {signature: self.standing(signature) for signature in signatures}
        if "trusted" in standings.values():
            return None
        revoked = [signature for signature, standing in standings.items() if standing == "revoked"]
        if revoked:
            return f"a signature with the revoked key {revoked[0].key.id} ({self.name_of(revoked[0].key)})"
        if not self.require_signature:
            return None
        return f"a signature by unknown {_keys(signatures)}" if signatures else "no signature"

    def check(self, path: Path, signatures: Sequence[Signature]) -> None:
        """UntrustedBundleError when this policy refuses a bundle with these signatures."""
        found = self.refusal(signatures)
        if found is None:
            return
        names = ", ".join(self.trusted)
        raise UntrustedBundleError(
            f"The bundle {path} is not trusted here.",
            expected=f"a signature by {names or 'a trusted key'} ({self.source})",
            found=found,
            fix="Get it from its maker, signed; or add the maker's key to [trusted], if you know it to be theirs.",
        )


def user_policy() -> Path:
    """Where the user's own policy lies: `foreword/trust.toml` in the configuration folder (`~/.config`)."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "foreword" / "trust.toml"


def _keys(signatures: Sequence[Signature]) -> str:
    ids = [signature.key.id for signature in signatures]
    return f"key{'s' if len(ids) > 1 else ''} {', '.join(ids)}"


def _parsed(told: Mapping[str, Any], path: Path) -> TrustPolicy:
    problems = [f"{name}: no such field (known: {', '.join(FIELDS)})" for name in told if name not in FIELDS]
    required = told.get("require-signature", False)
    if not isinstance(required, bool):
        problems.append("require-signature: expected true or false")
    keys: dict[str, dict[str, PublicKey]] = {"trusted": {}, "revoked": {}}
    for section, found in keys.items():
        table = told.get(section, {})
        if not isinstance(table, dict):
            problems.append(f"{section}: expected a table of NAME = KEY")
            continue
        for name, key in table.items():
            try:
                if not isinstance(key, str):
                    raise SigningError("", found="a value that is not text")
                found[name] = PublicKey.parse(key, folder=path.parent)
            except SigningError as error:
                problems.append(f"{section}.{name}: no Ed25519 public key ({error.found})")
    if required is True and not keys["trusted"] and not problems:
        problems.append("require-signature without a key in [trusted]: no bundle could ever be loaded")
    if problems:
        raise _wrong(str(path), problems)
    return TrustPolicy(required, keys["trusted"], keys["revoked"], source=str(path))


def _wrong(path: str, problems: Sequence[str]) -> SigningError:
    return SigningError(
        f"The trust policy {path} cannot be used.",
        expected="a TOML file with require-signature, [trusted] and [revoked], keys as base64 or as paths of PEM files",
        found="; ".join(problems),
        fix=f"Correct it (docs/how-to/sign-bundles.md), or let {VARIABLE} name another one.",
    )
