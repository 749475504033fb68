"""How DAGs get into pods: a repository with one reader, or an image with one small layer more; no cluster is asked."""

from __future__ import annotations

import base64
import grp
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
import yaml
from cluster_samples import ALONE, CLUSTER, DIGEST, SECRETS, complete, kubernetes, pods

from provision import secret_store
from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.kube import dag_image, delivery, git, manifests, state
from provision.kube.dag_image import Base, listed_images, outdated
from provision.kube.delivery import Delivery, delivery_from, delivery_of
from provision.kube.plan import plan_cluster
from provision.kube.state import Kubernetes
from provision.nodes.agent import repository, users
from provision.nodes.agent.basics import Failure, feed
from provision.nodes.agent.files import contents
from provision.nodes.desired import desired_state
from provision.nodes.layout import Layout
from provision.nodes.plan import plan
from provision.nodes.state import About, Desired
from provision.variants import KubernetesOptions, wanted

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is needed: apt-get install git")
CONTROL, WORKER = CLUSTER.control, CLUSTER.workers[0]
HOST_KEY = "ssh-ed25519 AAAAhost root@control\n"
TEMPLATE = "/etc/airflow-labs/pod.yaml"
REPOSITORY_FOLDER = "/var/lib/airflow-git"
FILES = {name: base64.b64encode(text.encode()).decode() for name, text in (("dags/probes.py", "a = 1\n"), ("dags/specs/p.json", "{}\n"))}
BASE = Base(
    {"schemaVersion": 2, "config": {"digest": "sha256:c", "size": 1}, "layers": [{"digest": "sha256:a"}, {"digest": "sha256:b"}]},
    {"architecture": "amd64", "config": {"User": "50000:50000"}, "rootfs": {"type": "layers", "diff_ids": ["sha256:a", "sha256:b"]}},
)
ROOT = PurePosixPath("/var/lib/airflow-labs")


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> str:
    return git.make_key(tmp_path_factory.mktemp("key"))


def cluster(dags: str, deploy_key: str = "", **seen: object) -> Kubernetes:
    """Return the cluster whose pods get DAGs in one of the three ways, complete but for what `seen` says."""
    more = {"git_url": git.url(CONTROL.address)} if dags == "git" else {}
    return kubernetes(seen=replace(complete(), host_key=HOST_KEY, **seen), settings=pods(dags, **more), deploy_key=deploy_key)


def desired(known: Kubernetes | None, dags: str = "volume") -> Desired:
    asked = wanted("kubernetes", kubernetes=KubernetesOptions(dags=dags)) if known else wanted("postgres")
    return desired_state(asked, CLUSTER, Layout(), About("3.11", "x86_64", "12"), SECRETS, kubernetes=known)


def steps(known: Kubernetes) -> set[tuple[str, str, str]]:
    return {(step.node, step.action, step.name) for step in plan_cluster(known)}


# -- the key ------------------------------------------------------------------------------------------


def test_a_key_is_new_each_time_and_leaves_no_file(tmp_path, key):
    other = git.make_key(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert key.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert git.public_key(other) != git.public_key(key)


def test_a_key_that_cannot_be_made_is_told_with_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProvisionError, match="ssh-keygen cannot make a key") as error:
        git.make_key(tmp_path)
    assert "OpenSSH" in error.value.hint


def test_whoever_has_the_key_may_clone_one_repository_and_do_nothing_else(key):
    line = git.authorized_keys(key)
    pattern = r"restrict,command=\"git-upload-pack '/var/lib/airflow-git/dags\.git'\" ssh-ed25519 [A-Za-z0-9+/=]{68}\n"
    assert re.fullmatch(pattern, line)
    # Words of the private key are in no file of a node.
    assert not any(word in text for text, _, _ in git.files(key).values() for word in key.splitlines()[1:-1])


def test_the_key_is_a_secret_of_those_installations_only_that_need_it():
    home = lab_home()
    home.prepare()
    assert git.KEY not in secret_store.load_or_create(home)
    made = secret_store.load_or_create(home, [git.KEY])
    assert home.secrets.stat().st_mode & 0o777 == 0o600
    # Whoever asks for other secrets does not lose it.
    assert secret_store.load_or_create(home) == made == secret_store.load_or_create(home, [git.KEY])
    secret_store.forget(home, [git.KEY])
    assert secret_store.load_or_create(home) == {name: value for name, value in made.items() if name != git.KEY}


def test_pods_know_the_control_node_by_its_key_at_its_private_address(key):
    (secret,) = [each for each in yaml.safe_load_all(cluster("git", key).objects()) if each["metadata"]["name"] == manifests.GIT_KEY]
    content = {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}
    assert content == {"id": key, "known_hosts": "192.168.56.10 ssh-ed25519 AAAAhost\n"}
    # The API server turns it into data, and every comparison would find a difference.
    assert "stringData" not in secret


def test_the_secret_is_an_object_only_where_pods_clone(key):
    for dags in ("volume", "image"):
        assert manifests.GIT_KEY not in cluster(dags).objects()


# -- what the nodes get -------------------------------------------------------------------------------


def test_the_repository_has_a_user_with_a_shell_that_knows_git_alone(key):
    known = cluster("git", key)
    assert state.accounts(known, CONTROL) == {"airflow-git": {"home": REPOSITORY_FOLDER, "shell": "/usr/bin/git-shell"}}
    assert state.accounts(known, WORKER) == {"airflow-git": None}
    assert "git" in state.packages(CONTROL, known)
    assert "git" not in state.packages(WORKER, known)


def test_what_the_user_of_the_repository_reads_it_cannot_change(key):
    node = desired(cluster("git", key), "git").nodes["control"]
    files = {path: file for path, file in node.files.items() if path.startswith(REPOSITORY_FOLDER)}
    assert set(files) == {f"{REPOSITORY_FOLDER}/.ssh/authorized_keys", f"{REPOSITORY_FOLDER}/.gitconfig"}
    assert {(file.owner, file.group, file.mode) for file in files.values()} == {("root", "airflow-git", "0640")}
    folders = {path: folder for path, folder in node.folders.items() if path.startswith(REPOSITORY_FOLDER)}
    assert {(folder.owner, folder.group, folder.mode) for folder in folders.values()} == {("root", "airflow-git", "0750")}
    assert list(folders) == [REPOSITORY_FOLDER, f"{REPOSITORY_FOLDER}/.ssh"]


@pytest.mark.parametrize("dags", ["volume", "image", None])
def test_other_ways_and_other_variants_keep_neither_user_nor_repository(dags):
    known = cluster(dags, dag_image="localhost/x:1") if dags else None
    for node in desired(known, dags or "volume").nodes.values():
        assert node.accounts == {"airflow-git": None}
        assert REPOSITORY_FOLDER in node.unwanted
        assert not [path for path in (*node.files, *node.folders) if path.startswith(REPOSITORY_FOLDER)]


def test_a_second_installation_leaves_the_user_of_the_first_alone():
    of = desired_state(wanted("postgres"), CLUSTER, Layout("second"), About("3.11", "x86_64", "12"), SECRETS)
    assert all(node.accounts == {} and REPOSITORY_FOLDER not in node.unwanted for node in of.nodes.values())


@pytest.mark.parametrize(("dags", "action"), [("git", "make"), ("volume", "remove")])
def test_a_user_that_is_not_as_it_should_be_is_a_step(dags, action, key):
    of = desired(cluster(dags, key if dags == "git" else ""), dags)
    facts = {
        name: {
            "packages": [], "user": [50000, 50000], "folders": [], "files": [], "unwanted": [], "distribution": [], "clock": True,
            "trusted": True, "others": [], "environment": True, "accounts": ["airflow-git"] if name == "control" else [],
            "units": {u.name: {"active": "active", "sub": "running", "digest": u.digest, "pid": 7} for u in node.units},
        }
        for name, node in of.nodes.items()
    }  # fmt: skip
    assert [(s.node, s.action, s.name) for s in plan(of, facts, of.database_mark)] == [("control", action, "user airflow-git")]


@pytest.mark.parametrize(
    ("dags", "nodes", "expected"),
    [
        ("volume", (), set()),
        ("git", (), set()),
        ("git", ("control",), {("control", "commit", "DAG folders")}),
        ("image", (), set()),
        ("image", ("worker-2",), {("worker-2", "import", "image with the DAGs")}),
    ],
)
def test_dags_that_pods_would_not_get_are_a_step(dags, nodes, expected):
    assert steps(cluster(dags, undelivered=frozenset(nodes))) == expected


def test_what_another_way_left_is_a_step():
    left = {"control": "secret dags-deploy-key", "worker-1": "images with DAGs"}
    assert steps(cluster("volume", leftovers=left)) == {(node, "remove", what) for node, what in left.items()}


def test_the_template_gets_an_image_only_when_every_node_has_it():
    known = cluster("image", dag_image="localhost/x:1")
    template = yaml.safe_load(desired(known, "image").nodes["control"].files[TEMPLATE].text)
    assert [container["image"] for container in template["spec"]["containers"]] == ["localhost/x:1"]
    waiting = desired(cluster("image", dag_image="localhost/x:2", undelivered=frozenset({"worker-1"})), "image").nodes["control"]
    assert TEMPLATE not in waiting.files
    # The one before stays until then.
    assert TEMPLATE not in waiting.unwanted
    assert TEMPLATE in desired(None).nodes["control"].unwanted


@pytest.mark.parametrize(("dags", "named"), [("volume", True), ("git", True), ("image", False)])
def test_airflow_is_told_an_image_only_where_it_does_not_change_with_dags(dags, named):
    environment = desired(cluster(dags), dags).environment
    section = "AIRFLOW__KUBERNETES_EXECUTOR__WORKER_CONTAINER"
    assert [bool(environment[f"{section}_{key}"]) for key in ("REPOSITORY", "TAG")] == [named, named]


def test_a_clone_that_is_turned_away_is_tried_again(tmp_path):
    pod = yaml.safe_load(manifests.pod_template(Layout(), pods("git", git_url="ssh://x")))
    shell, option, script, *clone = pod["spec"]["initContainers"][0]["command"]
    assert clone == ["git", "clone", "--quiet", "--depth", "1", "ssh://x", "/checkout"]
    attempts = tmp_path / "attempts"
    third = ["sh", "-c", f"echo x >> {attempts}; [ $(wc -l < {attempts}) = 3 ]"]
    assert subprocess.run([shell, option, script.replace('sleep "$pause"', ":"), *third]).returncode == 0
    assert subprocess.run([shell, option, script.replace('sleep "$pause"', ":"), "sh", "-c", "exit 128"]).returncode == 128


def test_dags_are_not_put_on_top_of_a_registrys_image():
    with pytest.raises(UsageError, match="not of apache/airflow") as error:
        wanted("kubernetes", kubernetes=KubernetesOptions(dags="image", image="apache/airflow:3.3.2"))
    assert "--dags git" in error.value.hint


# -- the image ----------------------------------------------------------------------------------------


def opened(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        return {entry.name: file.extractfile(entry).read() for entry in file if entry.isfile()}


def test_the_archive_has_the_small_layer_and_names_those_that_nodes_have():
    image = dag_image.dag_image(BASE, ROOT, FILES)
    blobs = {name.rpartition("/")[2]: content for name, content in opened(image.archive).items() if name.startswith("blobs/")}
    assert len(blobs) == 3
    manifest = json.loads(blobs[image.digest.removeprefix("sha256:")])
    config = json.loads(blobs[manifest["config"]["digest"].removeprefix("sha256:")])
    layers = [layer["digest"] for layer in manifest["layers"]]
    assert layers[:2] == ["sha256:a", "sha256:b"]
    assert layers == config["rootfs"]["diff_ids"]
    assert config["config"] == BASE.config["config"]
    assert opened(blobs[layers[2].removeprefix("sha256:")]) == {
        "var/lib/airflow-labs/dags/probes.py": b"a = 1\n",
        "var/lib/airflow-labs/dags/specs/p.json": b"{}\n",
    }
    (entry,) = json.loads(opened(image.archive)["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == image.reference


def test_a_task_may_read_every_file_of_the_layer():
    blobs = opened(dag_image.dag_image(BASE, ROOT, FILES).archive)
    layer = next(content for content in blobs.values() if b"var/lib/airflow-labs" in content)
    with tarfile.open(fileobj=io.BytesIO(layer)) as file:
        modes = {entry.name: entry.mode for entry in file}
    assert modes["var/lib/airflow-labs/dags/specs"] == 0o755
    assert modes["var/lib/airflow-labs/dags/probes.py"] == 0o644


def test_the_name_of_an_image_says_what_is_in_it():
    image = dag_image.dag_image(BASE, ROOT, FILES)
    same = dag_image.dag_image(BASE, ROOT, dict(reversed(FILES.items())))
    assert (same.reference, same.archive) == (image.reference, image.archive)
    others = [
        dag_image.dag_image(BASE, ROOT, FILES | {"dags/probes.py": "Yg=="}),
        dag_image.dag_image(BASE, ROOT, FILES | {"dags/more.py": "Yg=="}),
        dag_image.dag_image(replace(BASE, manifest={**BASE.manifest, "layers": [{"digest": "sha256:z"}]}), ROOT, FILES),
    ]
    assert len({image.reference, *(other.reference for other in others)}) == 4
    assert not image.reference.startswith(f"{state.REPOSITORY_OF_IMAGE}:")


def test_old_images_go_with_every_name_that_they_have():
    images = {
        "localhost/airflow-executor-labs-dags:1": "sha256:1", "sha256:config-of-1": "sha256:1",
        "localhost/airflow-executor-labs-dags:2": "sha256:2", "sha256:config-of-2": "sha256:2",
        "localhost/airflow-executor-labs:3.3.2-x": "sha256:3", "sha256:config-of-3": "sha256:3",
    }  # fmt: skip
    kept = {"localhost/airflow-executor-labs-dags:2"}
    assert outdated(images, kept) == ["localhost/airflow-executor-labs-dags:1", "sha256:config-of-1"]
    assert len(outdated(images, set())) == 4


# -- delivering ---------------------------------------------------------------------------------------


class FakeNode:
    """A node with images, and on the control node DAG folders, repository and template."""

    def __init__(self, name: str, files: dict[str, str]) -> None:
        self.name, self.files = name, files
        self.images: dict[str, str] = {}
        self.asked: list[str] = []
        self.template = self.wanted_by_pods = ""

    def call(self, op: str, **args: object) -> object:
        return getattr(self, op)(**args)

    def contents(self, root: str, folders: list[str]) -> dict[str, str]:
        return {name: content for name, content in self.files.items() if name.partition("/")[0] in folders}

    def ask(self, argv: list[str], check: bool = True) -> dict[str, object]:
        if "kubectl" in argv[0]:
            return {"code": 0, "out": self.wanted_by_pods}
        rows = [f"{name} application/vnd.oci.image.manifest.v1+json {digest} 1 MiB" for name, digest in self.images.items()]
        return {"code": 0, "out": "\n".join(["REF TYPE DIGEST SIZE", *rows])}

    def feed(self, argv: list[str], data: str) -> None:
        (entry,) = json.loads(opened(base64.b64decode(data))["index.json"])["manifests"]
        self.images[entry["annotations"]["io.containerd.image.name"]] = entry["digest"]
        self.asked.append("import")

    def run(self, argv: list[str]) -> None:
        for name in argv[argv.index("rm") + 1 :]:
            del self.images[name]

    def write_files(self, files: dict[str, dict[str, str]]) -> None:
        ((path, file),) = files.items()
        assert (path, file["owner"], file["group"], file["mode"]) == (TEMPLATE, "root", "airflow", "0640")
        self.template = file["text"]

    def commit(self, **args: object) -> None:
        self.asked.append(f"commit to {args['repository']} for {args['group']}")


class FakeNodes(dict):
    def each(self, work, names=None):
        return {name: work(self[name]) for name in (names or self)}


@pytest.fixture
def nodes() -> FakeNodes:
    return FakeNodes({name: FakeNode(name, dict(FILES)) for name in ("control", "worker-1", "worker-2")})


def image_delivery() -> Delivery:
    return replace(delivery_of(cluster("image")), base=BASE, ctr=("ctr",), kubectl=("kubectl",))


def listed(nodes: FakeNodes) -> dict[str, dict[str, str]]:
    return nodes.each(lambda node: node.images)


def image_of_template(nodes: FakeNodes) -> str:
    return yaml.safe_load(nodes["control"].template)["spec"]["containers"][0]["image"]


def test_a_delivery_survives_being_written_down():
    for known in (image_delivery(), delivery_of(cluster("git")), delivery_of(cluster("volume"))):
        assert delivery_from(json.loads(json.dumps(known.document()))) == known
    assert delivery_of(kubernetes(cluster=ALONE, seen=complete(ALONE))).nodes == ("control",)


def test_an_image_is_imported_where_it_is_missing_and_then_pods_get_it(nodes):
    known = image_delivery()
    reference, missing = delivery.undelivered(known, Layout(), nodes, listed(nodes))
    assert missing == {"worker-1", "worker-2"}
    delivery.deliver(known, Layout(), nodes)
    assert image_of_template(nodes) == reference
    assert delivery.undelivered(known, Layout(), nodes, listed(nodes)) == (reference, frozenset())
    del nodes["worker-2"].images[reference]
    assert delivery.undelivered(known, Layout(), nodes, listed(nodes)) == (reference, {"worker-2"})
    delivery.deliver(known, Layout(), nodes)
    assert [nodes[name].asked for name in nodes] == [[], ["import"], ["import", "import"]]


def test_every_change_of_a_dag_folder_makes_an_image_and_old_ones_go_but_for_those_of_pods(nodes):
    known, seen = image_delivery(), []
    for number in range(delivery.KEPT + 4):
        nodes["control"].files["dags/specs/p.json"] = base64.b64encode(f"{number}".encode()).decode()
        delivery.deliver(known, Layout(), nodes)
        seen.append(image_of_template(nodes))
        nodes["control"].wanted_by_pods = f"{seen[0]} docker.io/other:1"
        assert len(nodes["worker-1"].images) <= delivery.KEPT + 2
    assert len(set(seen)) == delivery.KEPT + 4
    assert {seen[0], seen[-1]} <= set(nodes["worker-1"].images)
    assert seen[1] not in nodes["worker-1"].images


def test_without_the_image_below_nothing_is_delivered(nodes):
    known = replace(image_delivery(), base=None)
    assert delivery.undelivered(known, Layout(), nodes, listed(nodes)) == ("", {"worker-1", "worker-2"})
    with pytest.raises(ProvisionError, match="no node has the image below it"):
        delivery.deliver(known, Layout(), nodes)


def test_a_clone_gets_what_was_committed_for_its_one_reader(nodes):
    delivery.deliver(delivery_of(cluster("git")), Layout(), nodes)
    assert nodes["control"].asked == ["commit to /var/lib/airflow-git/dags.git for airflow-git"]
    delivery.deliver(delivery_of(cluster("volume")), Layout(), nodes)
    assert nodes["worker-1"].asked == []


def test_what_containerd_lists_is_read_by_its_columns():
    printed = f"REF TYPE DIGEST SIZE PLATFORMS LABELS\nlocalhost/x:1 application/vnd {DIGEST} 546.4 MiB linux/amd64 a=b\n\n"
    assert listed_images(printed) == {"localhost/x:1": DIGEST}
    assert listed_images("") == {}


# -- on the node --------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """Return Airflow's home on a node, as a folder of the test's user."""
    monkeypatch.setattr(repository, "make_folders", lambda made: [os.makedirs(path, exist_ok=True) for path in made])
    for name, text in (("dags/probes.py", "a = 1\n"), ("dags/specs/p.json", "{}\n"), ("config/dag_builder.py", "b = 1\n")):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text(text)
    (tmp_path / "home" / "dags" / "__pycache__").mkdir()
    (tmp_path / "home" / "dags" / "__pycache__" / "probes.pyc").write_text("x")
    (tmp_path / "home" / "dags" / "half.json.new").write_text("x")
    (tmp_path / "home" / "dags" / "secret").symlink_to("/etc/shadow")
    (tmp_path / "home" / "airflow.cfg").write_text("x")
    return tmp_path / "home"


def of_agent(folders: Path) -> dict[str, object]:
    group = grp.getgrgid(os.getgid()).gr_name
    return {"repository": str(folders.parent / "dags.git"), "group": group, "root": str(folders), "folders": ["dags", "config"]}


def test_what_pods_get_are_the_files_of_the_folders_and_no_half_written_ones(folders):
    found = contents(str(folders), ["dags", "config"])
    assert list(found) == ["config/dag_builder.py", "dags/probes.py", "dags/specs/p.json"]
    assert base64.b64decode(found["dags/probes.py"]) == b"a = 1\n"


@needs_git
def test_a_commit_is_what_a_clone_gets_and_the_same_again_is_none(folders, tmp_path):
    asked = of_agent(folders)
    assert not repository.is_committed(**asked)
    repository.commit(**asked)
    repository.commit(**asked)
    assert repository.is_committed(**asked)
    (folders / "dags" / "specs" / "p.json").unlink()
    (folders / "dags" / ".gitignore").write_text("*\n")
    assert not repository.is_committed(**asked)
    repository.commit(**asked)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{asked['repository']}", str(clone)], check=True, capture_output=True)
    found = sorted(str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file() and ".git" not in path.parts)
    assert found == ["config/dag_builder.py", "dags/.gitignore", "dags/probes.py"]
    counted = subprocess.run(["git", "-C", asked["repository"], "rev-list", "--count", "main"], capture_output=True, text=True)
    assert counted.stdout.strip() == "2"


@needs_git
@pytest.mark.parametrize("damage", ["index.lock", "HEAD"])
def test_a_repository_that_an_interrupted_git_left_is_made_again(folders, damage):
    asked = of_agent(folders)
    repository.commit(**asked)
    (Path(asked["repository"]) / damage).write_text("")
    (folders / "dags" / "more.py").write_text("c = 1\n")
    repository.commit(**asked)
    assert repository.is_committed(**asked)


@pytest.mark.parametrize(
    ("there", "wanted_account", "expected"),
    [
        (None, None, []),
        ({"home": "/h", "shell": "/s"}, None, ["pkill -KILL -u guest", "userdel guest"]),
        ({"home": "/h", "shell": "/s"}, {"home": "/h", "shell": "/s"}, []),
        ({"home": "/h", "shell": "/bin/sh"}, {"home": "/h", "shell": "/s"}, ["usermod --home /h --shell /s guest"]),
        (
            None,
            {"home": "/h", "shell": "/s"},
            [
                "groupadd --system guest",
                "useradd --system --gid guest --no-create-home --password * guest",
                "usermod --home /h --shell /s guest",
            ],
        ),
    ],
)
def test_a_user_is_made_changed_or_removed_and_a_right_one_left_alone(monkeypatch, there, wanted_account, expected):
    done: list[str] = []
    monkeypatch.setattr(users, "account_of", lambda name: there)
    monkeypatch.setattr(users, "_has", lambda table, name: there and not any(each.startswith("userdel") for each in done))
    monkeypatch.setattr(users, "run", lambda argv, **more: done.append(" ".join(argv)))
    users.set_accounts({"guest": wanted_account})
    assert done == expected


def test_a_command_that_refuses_what_it_is_fed_is_told_with_its_last_words():
    feed(["sh", "-c", "[ $(cat) = x ]"], base64.b64encode(b"x").decode())
    with pytest.raises(Failure, match="it is broken"):
        feed(["sh", "-c", "cat >/dev/null; echo it is broken >&2; exit 1"], base64.b64encode(b"x").decode())
