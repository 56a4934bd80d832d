from importlib.metadata import distribution

import pytest
from distributions import install

from kdcore.plugin.loading import check_requirements, own_version_notes


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    site = tmp_path / "site"
    extra = 'nowhere-at-all>=2; extra == "more"'
    install(site, "kdcore-alpha", {}, version="0.2.1", requires=("kdcore>=0.1", extra))
    install(site, "kdcore-beta", {}, version="0.3.dev1", requires=("kdcore>=99",))
    monkeypatch.syspath_prepend(site)


@pytest.mark.parametrize(
    "text",
    [
        "kdcore",
        "kdcore-alpha>=0.2",
        "kdcore_alpha~=0.2.0",
        "kdcore-beta>0.2",
        "nowhere-at-all; python_version < '3'",
    ],
)
def test_what_is_met_has_no_message(text):
    assert check_requirements([text]) == []


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "kdcore-alpha>=0.3",
            "kdcore-alpha>=0.3 is needed, 0.2.1 is installed: pip install 'kdcore-alpha>=0.3'",
        ),
        (
            "nowhere-at-all>=1",
            "nowhere-at-all is not installed: pip install 'nowhere-at-all>=1'",
        ),
        (
            "kdcore-alpha[more]>=0.2",
            "nowhere-at-all is not installed: pip install 'nowhere-at-all>=2'",
        ),
        ("kdcore >> 2", "'kdcore >> 2' is not a requirement such as 'kdcore>=0.1': "),
    ],
)
def test_what_is_unmet_says_what_to_type(text, said):
    (message,) = check_requirements(["kdcore", text])
    assert message.startswith(said)


def test_plugins_for_another_kdcore_are_reported():
    assert own_version_notes(distribution("kdcore-alpha")) == []
    (note,) = own_version_notes(distribution("kdcore-beta"))
    assert "kdcore>=99 is needed" in note
