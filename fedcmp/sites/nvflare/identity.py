"""Who a site is, to other sites: its kit's certificate, and what it signs."""

from __future__ import annotations

import time
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

_CONTEXT = b"\0fedcmp sites 1\0"  # no certificate's name starts so: what NVFlare has a site sign can never be ours


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)


class KitIdentity:
    """A site by its kit: signs with the kit's key, and knows others by the kit's root certificate.

    Args:
        folder: of the site; it has the kit.
    """

    def __init__(self, folder: Path) -> None:
        place = folder / "kit" / "startup"
        key = serialization.load_pem_private_key((place / "client.key").read_bytes(), None)
        assert isinstance(key, RSAPrivateKey)  # NVFlare's kits have no others
        self._key, self._root = key, x509.load_pem_x509_certificate((place / "rootCA.pem").read_bytes())
        self.certificate = (place / "client.crt").read_text()

    def sign(self, data: bytes) -> bytes:
        """The signature of this site."""
        return self._key.sign(_CONTEXT + data, _PSS, hashes.SHA256())

    def verify(self, site: str, certificate: str, data: bytes, signature: bytes) -> bool:
        """Whether the site of that name signed the data with a key that the federation's root has certified."""
        try:
            theirs = x509.load_pem_x509_certificate(certificate.encode())
            theirs.verify_directly_issued_by(self._root)
            names = [str(name.value) for name in theirs.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
            key = theirs.public_key()
            if not isinstance(key, RSAPublicKey):
                return False
            key.verify(signature, _CONTEXT + data, _PSS, hashes.SHA256())
        except (ValueError, TypeError, InvalidSignature):
            return False
        valid = theirs.not_valid_before_utc.timestamp() <= time.time() <= theirs.not_valid_after_utc.timestamp()
        return valid and names == [site]
