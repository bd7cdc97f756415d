"""Pseudonyms for identifiers of DICOM files: what is written must not lead back to a patient."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from ctcovid.base.errors import InputError
from ctcovid.base.faults import raise_machine_fault

SALT_BYTES = 32


class Pseudonyms:
    """Stable names for identifiers, which only somebody with the salt can trace back.

    Parameters
    ----------
    salt_file : file of the salt, readable by its owner alone, made when the first name is asked for; None keeps identifiers unchanged
    lasting : whether a new salt is written; if not, the names hold for this process only
    """

    def __init__(self, salt_file: Path | None, lasting: bool = True) -> None:
        self.salt_file, self.lasting = salt_file, lasting
        self._salt = b""

    @property
    def mark(self) -> str:
        """A mark that tells this salt from others and reveals nothing else of it."""
        return self("the mark of a salt")

    @property
    def used(self) -> bool:
        """Whether a name has been asked for."""
        return bool(self._salt)

    def __call__(self, identifier: str) -> str:
        """A name of 16 hexadecimal digits.

        Raises InputError if the salt can be neither read nor written.
        """
        if self.salt_file is None:
            return identifier
        if not self._salt:
            self._salt = _salt(self.salt_file, self.lasting)
        return hashlib.blake2b(identifier.encode("utf-8", "replace"), key=self._salt, digest_size=8).hexdigest()


def _salt(path: Path, lasting: bool) -> bytes:
    try:
        if not path.exists() and not lasting:
            return secrets.token_bytes(SALT_BYTES)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(secrets.token_bytes(SALT_BYTES))
            except FileExistsError:
                # Another process has just made it.
                pass
            except OSError:
                # A file that a full disk cut short would be no salt.
                path.unlink(missing_ok=True)
                raise
        salt = path.read_bytes()
    except OSError as error:
        raise_machine_fault(error, path)
        raise InputError(f"{path}, the salt of the pseudonyms, cannot be used: {error.strerror}. Fix its permissions.") from error
    if len(salt) != SALT_BYTES:
        raise InputError(f"{path} is not a salt of {SALT_BYTES} bytes. Restore it, or remove it for new pseudonyms.")
    return salt
