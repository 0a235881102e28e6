"""Whatever stands in a web.yaml, it is read or refused with a place, and no secret is told."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmemd.export.protection import Reading
from gmemd.spec.problems import SpecError
from gmemd.spec.web import HttpConfig, RateLimitConfig, TlsConfig, WebConfig

NO_HASH = "hunter2-hunter2"
KEYS = [
    key
    for model in (WebConfig, TlsConfig, HttpConfig, RateLimitConfig)
    for key in model.model_fields
]
WORDS = [
    *KEYS,
    *("true", "false", "0", "1s", "20", "", "TLS12", "TLS13", "NoClientCert", "X25519", "deny"),
    *("RequireAndVerifyClientCert", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "/dev/zero", ".."),
    *("TLS_AES_128_GCM_SHA256", "/proc/self/mem", "web.yaml", "a" * 300, "X-Frame-Options", "\t"),
    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
    "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze",
]
TREES = st.recursive(
    st.sampled_from(WORDS) | st.text(max_size=5) | st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
SECTIONS = st.fixed_dictionaries(
    {}, optional={key: TREES for key in WebConfig.model_fields if key != "basic_auth_users"}
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(tree=SECTIONS | TREES)
def test_anything(tree: object) -> None:
    if isinstance(tree, dict):
        tree["basic_auth_users"] = {"alice": NO_HASH}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "web.yaml"
        path.write_text(yaml.safe_dump(tree, allow_unicode=True))
        with pytest.raises(SpecError) as caught:
            Reading(path).protection()
    assert caught.value.problems
    assert NO_HASH not in repr(caught.value.problems)
