"""Keys, and signatures over a bundle's digest: Ed25519, in the usual key files.

It knows how a key is made, stored and read, and what a signature covers: the digest, who signs by what name, and when.
It deliberately does not know who is trusted (`trust.py`) or where a signature is kept (`bundle.py`). The library
`cryptography` is loaded when something is signed or checked, and only then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from foreword.errors import SigningError
from foreword.regular_file import content_of, found_in

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM = "ed25519"
# In front of what is signed, so that no signature made for something else counts for a bundle, nor the other way round.
DOMAIN = b"foreword.bundle/1 signature\0"
INSTALL = "pip install 'foreword[sign]'"
LONGEST_SIGNER = 200
KEY_FILE_LIMIT = 2**16

# What stands before the 32 bytes in the SubjectPublicKeyInfo of every Ed25519 key (RFC 8410, section 4).
_PUBLIC_DER = bytes.fromhex("302a300506032b6570032100")
_FIELDS = {"algorithm", "key", "signer", "time", "signature"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key: 32 bytes.

    >>> PublicKey(bytes(32)).id, PublicKey(bytes(32)).text[:8]
    ('66687aadf862bd77', 'AAAAAAAA')
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise SigningError(
                "This is not an Ed25519 public key.",
                expected="32 bytes",
                found=f"{len(self.raw)} bytes",
                fix="Use the .pub file that `foreword sign --new-key` wrote.",
            )

    @property
    def text(self) -> str:
        """The key in base64, as it stands in a trust policy."""
        return base64.b64encode(self.raw).decode()

    @property
    def id(self) -> str:
        """A short name to compare by eye: the first 16 hexadecimal digits of the key's SHA-256."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @classmethod
    def parse(cls, text: str, *, folder: Path | None = None) -> PublicKey:
        """A key from base64, 64 hexadecimal digits, PEM, or a path (relative to `folder`) of a PEM file."""
        told = as_text(text, "a public key, or the path of its file").strip()
        if re.fullmatch(r"[0-9a-fA-F]{64}", told):
            return cls(bytes.fromhex(told))
        if re.fullmatch(r"[A-Za-z0-9+/]{43}=", told):
            return cls(base64.b64decode(told))
        if not told.startswith("-----BEGIN"):
            path = Path(os.path.expanduser(told))  # noqa: PTH111  Path's own raises for "~name" of nobody here
            told = _key_file((folder or Path()) / path).decode("ascii", errors="replace").strip()
        found = re.fullmatch(r"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----", told)
        try:
            der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
        except binascii.Error:
            der = b""
        if not der.startswith(_PUBLIC_DER):
            raise SigningError(
                "This is not an Ed25519 public key.",
                expected="base64 of 32 bytes, 64 hexadecimal digits, or a PEM file with PUBLIC KEY",
                found=_kind(told),
                fix="Use the .pub file that `foreword sign --new-key` wrote.",
            )
        return cls(der.removeprefix(_PUBLIC_DER))


@dataclass(frozen=True)
class Signature:
    """One signature: by which key, by what name its holder goes, when (UTC, as the signer says), and its 64 bytes.

    All of it is covered by the signature but the name and the time are claims: only the key is proved.
    """

    key: PublicKey
    time: str
    value: bytes
    signer: str | None = None

    def described(self) -> dict[str, Any]:
        """The signature as JSON values."""
        return {
            "algorithm": ALGORITHM,
            "key": self.key.text,
            "signer": self.signer,
            "time": self.time,
            "signature": base64.b64encode(self.value).decode(),
        }

    @classmethod
    def parse(cls, told: object) -> Signature:
        """The signature that `described` gave; ValueError for anything else."""
        if not isinstance(told, Mapping) or set(told) != _FIELDS:
            raise ValueError(f"a signature without exactly {', '.join(sorted(_FIELDS))}")
        if told["algorithm"] != ALGORITHM:
            raise ValueError(f"a signature by another algorithm than {ALGORITHM}")
        if not (isinstance(told["time"], str) and _TIME.fullmatch(told["time"])):
            raise ValueError("a signature whose time is not YYYY-MM-DDThh:mm:ssZ")
        if told["signer"] is not None and not _is_signer(told["signer"]):
            raise ValueError("a signature whose signer is not a printable name")
        key, value = _bytes_of(told["key"], 32), _bytes_of(told["signature"], 64)
        return cls(PublicKey(key), told["time"], value, told["signer"])

    def covers(self, digest: str) -> bool:
        """Whether the key's holder signed exactly this digest, name and time; SigningError without the library."""
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError as error:
            _library_is_missing(error)
        try:
            Ed25519PublicKey.from_public_bytes(self.key.raw).verify(
                self.value, _message(digest, self.key, self.signer, self.time)
            )
        except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no point of the curve
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key, held in memory; never shown.

    >>> key = SigningKey.new()
    >>> key.sign("0" * 64, signer="alice").covers("0" * 64), key.sign("0" * 64).covers("1" * 64)
    (True, False)
    """

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def new(cls) -> SigningKey:
        """A new key from the system's random numbers."""
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError as error:
            _library_is_missing(error)
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: str | Path, *, passphrase: str | None = None) -> SigningKey:
        """The key in a PKCS #8 PEM file; SigningError when it is none, or another passphrase is needed."""
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        except ImportError as error:
            _library_is_missing(error)
        content = _key_file(Path(as_text(path, "the path of a private key")))
        secret = None if passphrase is None else _secret(passphrase)
        try:
            key = load_pem_private_key(content, secret)
        except TypeError as error:
            needed = passphrase is None
            raise SigningError(
                f"The private key {path} {'needs a' if needed else 'has no'} passphrase.",
                expected="a passphrase" if needed else "none",
                found="none" if needed else "one",
                fix=f"{'Set' if needed else 'Unset'} FOREWORD_KEY_PASSPHRASE, or give the other key.",
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SigningError(
                f"The private key {path} cannot be read.",
                expected="a PKCS #8 PEM file with an Ed25519 key" + (", and its passphrase" if passphrase else ""),
                found="another passphrase or a damaged file" if passphrase else _kind(content.decode("latin-1")),
                fix="Give the .key file that `foreword sign --new-key` wrote, and its passphrase if it has one.",
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SigningError(
                f"The private key {path} is of another kind.",
                expected="an Ed25519 key",
                found=type(key).__name__.lstrip("_"),
                fix="Make one with `foreword sign --new-key NAME`.",
            )
        return cls(key)

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, digest: str, *, signer: str | None = None) -> Signature:
        """A signature over a bundle's digest, `signer` and the present time."""
        if signer is not None and not _is_signer(signer):
            raise SigningError(
                "The signer's name cannot be written into a bundle.",
                expected=f"printable text of at most {LONGEST_SIGNER} characters",
                found=repr(signer)[:100],
                fix="Choose another name.",
            )
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Signature(self.public, time, self._key.sign(_message(digest, self.public, signer, time)), signer)

    def write(self, path: str | Path, *, passphrase: str | None = None) -> tuple[Path, Path]:
        """Write `path`.key (readable by its owner only) and `path`.pub, and give both; never over a file that is there.

        With a passphrase the private key is encrypted with it.
        """
        from cryptography.hazmat.primitives import serialization as forms

        path = as_text(path, "the path of a new key")
        secret = None if passphrase is None else _secret(passphrase)
        lock = forms.BestAvailableEncryption(secret) if secret else forms.NoEncryption()
        private = self._key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, lock)
        public = self._key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
        files = {Path(f"{path}.key"): (private, 0o600), Path(f"{path}.pub"): (public, 0o644)}
        written: list[Path] = []
        try:
            for place, (content, mode) in files.items():
                descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                written.append(place)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException as error:
            for place in written:
                place.unlink(missing_ok=True)
            if not isinstance(error, OSError | ValueError):  # ValueError: a path with a NUL in it
                raise
            raise SigningError(
                "The new key could not be written.",
                expected=" and ".join(f"{place!s:.100}" for place in files) + ", neither of them there yet",
                found=f"{found_in(error)}: {getattr(error, 'filename', None) or repr(path)}",
                fix="Choose another name or folder; a key is never overwritten.",
            ) from error
        first, second = files
        return first, second


def _message(digest: str, key: PublicKey, signer: str | None, time: str) -> bytes:
    """What is signed: everything that is told of the signature, and the digest."""
    told = {"algorithm": ALGORITHM, "digest": digest, "key": key.text, "signer": signer, "time": time}
    return DOMAIN + json.dumps(told, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def _bytes_of(text: object, length: int) -> bytes:
    """The bytes in base64 text, in its one canonical form; ValueError otherwise."""
    found = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    if len(found) != length or base64.b64encode(found).decode() != text:
        raise ValueError(f"a signature whose key or value is not base64 of {length} bytes")
    return found


def as_text(given: object, what: str) -> str:
    """`given` as text; SigningError when it is neither a text nor a path."""
    if not isinstance(given, str | Path):
        raise SigningError(
            f"This is not {what}.",
            expected="a text or a pathlib.Path",
            found=type(given).__name__,
            fix="Name the file that `foreword sign --new-key` wrote, or the trust policy's.",
        )
    return str(given)


def _secret(passphrase: object) -> bytes:
    try:
        return passphrase.encode()  # type: ignore[attr-defined,no-any-return]
    except (AttributeError, UnicodeEncodeError) as error:
        raise SigningError(
            "This passphrase cannot be used.",
            expected="a text that UTF-8 can write",
            found=type(passphrase).__name__,
            fix="Give it as a str, such as os.environ['FOREWORD_KEY_PASSPHRASE'].",
        ) from error


def _is_signer(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= LONGEST_SIGNER and name.isprintable()


def _key_file(path: Path) -> bytes:
    try:
        return content_of(path, KEY_FILE_LIMIT)
    except FileNotFoundError as error:
        raise SigningError(
            f"There is no key file {str(path)[:200]}.",
            expected="a PEM file",
            found="nothing",
            fix="Check the path, or make a key with `foreword sign --new-key NAME`.",
        ) from error
    except (OSError, ValueError) as error:  # another kind of file, no permission, a NUL, a loop of links
        raise SigningError(
            f"The key file {str(path)[:200]} cannot be read.",
            expected="a PEM file",
            found=found_in(error),
            fix="Check the path and the permissions.",
        ) from error


def _kind(text: str) -> str:
    """What a text that is not the expected key looks like; never its content."""
    found = re.search(r"-----BEGIN ([A-Z0-9 ]{1,40})-----", text)
    return f"PEM with {found[1]}" if found else f"{len(text):,} characters of something else"


def _library_is_missing(error: ImportError) -> NoReturn:
    raise SigningError(
        "Signatures need the library cryptography.",
        expected="cryptography, an optional dependency",
        found=str(error),
        fix=INSTALL,
    ) from error
