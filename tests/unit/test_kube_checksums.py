"""What was seen, what a release lists and what is pinned: where they agree nothing is said, and where not, which of them differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.errors import ProvisionError
from provision.kube.checksums import (
    listed,
    require_as_listed,
    require_as_pinned,
    require_list_as_pinned,
    require_listed,
    require_vouched_for,
)

ONE, OTHER = "1" * 64, "2" * 64
FILE, LIST = Path("/files/k3s"), Path("/files/sha256sum-amd64.txt")
RELEASE = "K3s v1.36.4+k3s1"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"{ONE}  k3s", {"k3s": ONE}),
        (f"{'A' * 64} *k3s", {"k3s": "a" * 64}),
        (f"{ONE} two names", {}),
        ("1234  k3s", {}),
        (f"{'z' * 64}  k3s", {}),
        ("<html>not found</html>", {}),
        ("", {}),
    ],
)
def test_only_lines_of_a_list_are_taken_from_it(line, found):
    assert listed(f"{line}\n") == found


def test_where_all_agree_nothing_is_said():
    require_listed([FILE], {"k3s": ONE})
    require_as_listed({FILE: ONE}, {"k3s": ONE, "other": OTHER})
    require_list_as_pinned(LIST, ONE, {"k3s": OTHER}, {LIST.name: ONE, "k3s": OTHER, "k3s-arm64": ONE}, RELEASE)
    require_as_pinned({FILE: ONE}, {FILE: "k3s"}, {"k3s": ONE}, RELEASE)
    require_vouched_for({FILE: ONE}, {FILE: "k3s"}, [{"k3s": OTHER}, {"k3s": ONE}], RELEASE, {FILE: []})


def test_where_nothing_is_pinned_nothing_is_compared():
    require_list_as_pinned(LIST, ONE, {"k3s": OTHER}, {}, RELEASE)
    require_as_pinned({FILE: ONE}, {FILE: "k3s"}, {}, RELEASE)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: require_listed([FILE], {"other": ONE}), ["/files/k3s was downloaded", "does not name it"]),
        (lambda: require_as_listed({FILE: ONE}, {"k3s": OTHER}), ["/files/k3s is not what its release lists", ONE, OTHER]),
        (
            lambda: require_list_as_pinned(LIST, ONE, {"k3s": ONE}, {"k3s": OTHER}, RELEASE),
            [f"list of checksums of {RELEASE} was changed after it was pinned", str(LIST), ONE, f"for k3s, pinned is {OTHER}"],
        ),
        (
            lambda: require_list_as_pinned(LIST, ONE, {}, {LIST.name: OTHER}, RELEASE),
            [f"list of checksums of {RELEASE} is not the one that was pinned", str(LIST), ONE, OTHER],
        ),
        (
            lambda: require_as_pinned({FILE: ONE}, {FILE: "k3s-arm64"}, {"k3s": ONE, "k3s-arm64": OTHER}, RELEASE),
            [f"/files/k3s is not what is pinned for {RELEASE}", ONE, OTHER],
        ),
        (
            lambda: require_vouched_for({FILE: ONE}, {FILE: "k3s-arm64"}, [{"k3s": ONE}, {}], RELEASE, {FILE: ["fetch the list"]}),
            ["Nothing vouches for /files/k3s", RELEASE],
        ),
    ],
)
def test_what_does_not_agree_is_named_with_checksums_and_what_to_do(check, words):
    with pytest.raises(ProvisionError) as refused:
        check()
    assert all(word in refused.value.message for word in words), refused.value.message
    assert refused.value.hint
