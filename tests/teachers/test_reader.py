import codecs
import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from rl_zoo3.utils import SimpleLinearSchedule
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from teacher_files import ATTACKS, Payload, edit_zip, gym_era, serialized

from sb3_qpd.teachers.families import TEACHERS
from sb3_qpd.teachers.files import weights
from sb3_qpd.teachers.files.agent_file import read_agent
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.files.pickle_reader import GlobalName
from sb3_qpd.teachers.files.sb3_zip import TeacherFile
from sb3_qpd.teachers.files.vecnormalize import is_vecnormalize, read_vecnormalize
from sb3_qpd.teachers.files.zoo_yaml import read_yaml

WAY_OUT = "load it yourself .* pass the live model"


@pytest.fixture(scope="module")
def model() -> PPO:
    return PPO("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[8, 8], activation_fn=th.nn.ReLU), n_steps=64, seed=0)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ppo") / "ppo.zip"
    model.learn(64).save(path)
    return path


class OwnPolicy(ActorCriticPolicy):
    pass


def read(path: Path) -> TeacherFile:
    return read_agent(path, TEACHERS)


def test_reads_what_sb3_saved(model, saved):
    file = read(saved)
    assert (file.algo, file.policy_class_name) == ("ppo", "ActorCriticPolicy")
    assert file.action_space == model.action_space and file.observation_space == model.observation_space
    assert file.policy_kwargs == {
        "use_sde": False,
        "net_arch": [8, 8],
        "activation_fn": GlobalName("torch.nn.modules.activation", "ReLU"),
    }
    assert file.checksum == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert file.sb3_version.startswith("2.")
    for key, value in model.policy.state_dict().items():
        assert th.equal(file.state_dict[key], value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Box(np.array([-1, -2], np.float32), np.array([1, np.inf], np.float32)),
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Box(-3, 3, (), np.float32),
        spaces.Discrete(5, seed=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("era", ["gymnasium", "gym"])
def test_spaces_of_both_eras(saved, tmp_path, space, era):
    if isinstance(space, spaces.Discrete):
        space.sample()  # a generator with a state
    pickled = cloudpickle.dumps(space) if era == "gymnasium" else gym_era(space)
    path = edit_zip(saved, tmp_path / "edited.zip", {"observation_space": serialized(pickled)})
    assert read(path).observation_space == space


def test_the_oldest_layout(saved, tmp_path):
    # before 0.11: other names, and no version of the writer
    old = {"_stable_baselines3_version": None, "system_info.txt": None, "pytorch_variables.pth": None}
    file = read(edit_zip(saved, tmp_path / "old.zip", members=old))
    assert file.sb3_version == "" and file.algo == "ppo"
    with zipfile.ZipFile(saved) as archive:
        weights = archive.read("policy.pth")
    moved = edit_zip(saved, tmp_path / "moved.zip", members={**old, "policy.pth": None, "tensors.pth": weights})
    assert read(moved).state_dict.keys() == file.state_dict.keys()


def test_no_policy_kwargs_at_all(saved, tmp_path):
    assert read(edit_zip(saved, tmp_path / "a.zip", {"policy_kwargs": None})).policy_kwargs == {"use_sde": False}


# --- hostile files ---
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("key", ["observation_space", "action_space", "policy_kwargs", "policy_class"])
def test_hostile_values_are_refused_and_do_not_run(saved, tmp_path, key, attack):
    marker = tmp_path / "ran"
    hostile = edit_zip(saved, tmp_path / "hostile.zip", {key: serialized(ATTACKS[attack](f"touch {marker}"))})
    with pytest.raises(TeacherError, match="(?s)(without running it|outside the known classes).*" + WAY_OUT):
        read(hostile)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ["observation_space", "policy_kwargs", "lr_schedule", "ep_info_buffer", "zzz"])
def test_the_unsafe_loader_runs_them(saved, tmp_path, key):
    marker = tmp_path / "ran"
    hostile = edit_zip(saved, tmp_path / "hostile.zip", {key: serialized(pickle.dumps(Payload(f"touch {marker}")))})
    try:
        PPO.load(hostile)
    except Exception:  # whatever SB3 makes of the exit status in that place
        pass
    assert marker.exists()


@pytest.mark.parametrize("key", ["lr_schedule", "clip_range", "ep_info_buffer", "rollout_buffer_class", "zzz"])
def test_values_that_are_not_needed_are_never_decoded(saved, tmp_path, key):
    marker = tmp_path / "ran"
    for content in (pickle.dumps(Payload(f"touch {marker}")), b"not even a pickle"):
        path = edit_zip(saved, tmp_path / "hostile.zip", {key: serialized(content)})
        assert read(path).state_dict.keys() == read(saved).state_dict.keys()
    assert not marker.exists()


def test_hostile_weights(saved, tmp_path):
    marker = tmp_path / "ran"
    buffer = io.BytesIO()
    th.save({"action_net.weight": Payload(f"touch {marker}")}, buffer)
    hostile = edit_zip(saved, tmp_path / "hostile.zip", members={"policy.pth": buffer.getvalue()})
    th.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(
        TeacherError, match=r"policy.pth of .* does not hold plain weights .* without running it. .*" + WAY_OUT
    ):
        read(hostile)
    assert not marker.exists()


def test_own_classes_are_refused_with_the_way_out(saved, tmp_path):
    class Extractor(th.nn.Module):  # by value: cloudpickle carries its code
        pass

    for key, value, named in (
        ("policy_kwargs", dict(features_extractor_class=Extractor), "policy_kwargs of .* cloudpickle"),
        ("policy_kwargs", dict(features_extractor_class=OwnPolicy), r"asks for test_reader\.OwnPolicy"),
        ("policy_class", type("Local", (ActorCriticPolicy,), {}), "a policy class of its own as code"),
        ("policy_class", OwnPolicy, r"policy class .* is test_reader\.OwnPolicy, outside the known classes"),
    ):
        path = edit_zip(saved, tmp_path / "own.zip", {key: serialized(cloudpickle.dumps(value))})
        with pytest.raises(TeacherError, match=f"(?s){named}.*{WAY_OUT}"):
            read(path)


# --- damaged files ---
def test_no_such_file(tmp_path):
    with pytest.raises(
        TeacherError, match="No such file: .*gone.zip. Expected a zip saved by Stable-Baselines3; check the path"
    ):
        read(tmp_path / "gone.zip")
    with pytest.raises(TeacherError, match="is a folder. Expected a zip"):
        read(tmp_path)


def test_not_a_zip(tmp_path):
    for content in (b"", b"hello", b"\x80\x04."):
        (tmp_path / "model.zip").write_bytes(content)
        with pytest.raises(TeacherError, match="is not a zip. Expected a model saved by Stable-Baselines3"):
            read(tmp_path / "model.zip")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_zip(saved, tmp_path, share):
    content = saved.read_bytes()
    (tmp_path / "model.zip").write_bytes(content[: int(share * len(content))])
    with pytest.raises(TeacherError, match="truncated or damaged zip .*Fetch or save it again"):
        read(tmp_path / "model.zip")


def test_a_damaged_member(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        start = archive.getinfo("policy.pth").header_offset
    content[start + 2000 : start + 2100] = bytes(100)
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(TeacherError, match="policy.pth in .* is truncated or damaged"):
        read(tmp_path / "model.zip")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.jpg", b"")
    with pytest.raises(TeacherError, match=r"not one saved by .*it has no member 'data' \(it holds photo.jpg\)"):
        read(tmp_path / "photos.zip")


@pytest.mark.parametrize(
    "members, message",
    [
        ({"data": b"{"}, "'data' of .* is not JSON"),
        ({"data": b"\xff"}, "'data' of .* is not JSON"),
        ({"data": b"[" * 100_000}, "'data' of .* is not JSON"),
        ({"data": b"[]"}, "is a JSON list, expected an object"),
        ({"policy.pth": None, "pytorch_variables.pth": None}, "has no weights: expected a member policy.pth"),
        ({"policy.pth": b"nonsense"}, "policy.pth of .* is not a zip. Expected weights that torch saved"),
        ({"policy.pth": b"PK\x03\x04nonsense"}, "policy.pth of .* is a truncated or damaged zip"),
    ],
)
def test_members_that_are_not_what_they_should_be(saved, tmp_path, members, message):
    with pytest.raises(TeacherError, match=message):
        read(edit_zip(saved, tmp_path / "edited.zip", members=members))


@pytest.mark.parametrize(
    "data, message",
    [
        ({"observation_space": None}, "has no observation_space"),
        ({"observation_space": "Box"}, "observation_space of .* is not a space of gym or gymnasium"),
        ({"observation_space": {":serialized:": "%%%"}}, "observation_space of .* was refused, without running it"),
        ({"observation_space": {":serialized:": 3}}, "observation_space of .* was refused, without running it"),
        ({"action_space": serialized(pickle.dumps(3))}, "action_space of .* is not a space"),
        ({"action_space": serialized(pickle.dumps(spaces.Text(3)))}, "is a Text space, which is not supported"),
        (
            {"action_space": serialized(pickle.dumps(spaces.Dict(a=spaces.Discrete(2))))},
            "is a Dict .*Supported: Discrete, Multi",
        ),
        (
            {"observation_space": serialized(pickle.dumps(spaces.Tuple([spaces.Discrete(2)])))},
            "is a Tuple space, which is not supported. Supported: Box",
        ),
        (
            {"observation_space": serialized(pickle.dumps(spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2)))))},
            "which is nested",
        ),
        ({"action_space": serialized(pickle.dumps(spaces.MultiDiscrete([[2, 3], [4, 5]])))}, "needs one axis"),
        ({"policy_kwargs": [1]}, "policy_kwargs of .* Expected a dict"),
        ({"policy_class": None}, "has no policy_class"),
        ({"policy_class": "MlpPolicy"}, "a policy class of its own"),
        (
            {**dict.fromkeys(("clip_range", "clip_range_vf", "n_epochs", "gae_lambda"))},
            "another algorithm: unknown actor-critic",
        ),
    ],
)
def test_values_that_are_not_what_they_should_be(saved, tmp_path, data, message):
    with pytest.raises(TeacherError, match=message):
        read(edit_zip(saved, tmp_path / "edited.zip", data))


@pytest.mark.parametrize(
    "attributes, message",
    [
        (dict(low=np.zeros(2), high=np.ones(3), dtype=np.dtype("f4")), "shape and bounds contradict"),
        (dict(low=np.zeros(2), high=np.ones(2), dtype=np.dtype("f4"), _shape=(3,)), "shape and bounds contradict"),
        (dict(low=np.array(["a"]), high=np.ones(1), dtype=np.dtype("f4")), "only numbers and booleans"),
        (dict(low=np.full(1, np.nan), high=np.ones(1), dtype=np.dtype("f4")), "was refused"),
        (dict(low=np.zeros(1), high=np.ones(1), dtype=np.dtype("O")), "only numbers and booleans"),
        (dict(low=np.zeros(1), high=np.ones(1)), "was refused"),
        ({}, "was refused"),
    ],
)
def test_boxes_that_contradict_themselves(saved, tmp_path, attributes, message):
    box = spaces.Box.__new__(spaces.Box)
    box.__dict__.update(attributes)
    path = edit_zip(saved, tmp_path / "edited.zip", {"observation_space": serialized(pickle.dumps(box))})
    with pytest.raises(TeacherError, match=message):
        read(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: {**w, "action_net.weight": w["action_net.weight"] * np.nan},
            "action_net.weight .* NaN or infinite weights",
        ),
        (lambda w: {**w, "value_net.bias": w["value_net.bias"] + np.inf}, "value_net.bias .* NaN or infinite weights"),
        (lambda w: {**w, "log_std": th.eye(2).to_sparse()}, "does not hold plain weights .*_rebuild_sparse_tensor"),
        (lambda w: list(w.values()), "is not a dict of named tensors"),
        (lambda w: {**w, "extra": 3}, "is not a dict of named tensors"),
        (lambda w: {str(i): th.zeros(1) for i in range(1001)}, "holds more than 1000 tensors"),
        # one number that claims to be 10^10 of them
        (lambda w: {**w, "huge": th.zeros(1).expand(100_000, 100_000)}, "or 536870912 bytes: refused"),
    ],
)
def test_weights_that_are_not_weights(saved, tmp_path, change, message):
    with pytest.raises(TeacherError, match=message):
        read(edit_zip(saved, tmp_path / "edited.zip", state_dict=change))


def test_members_that_swell(saved, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "inner.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**6))
    bomb = edit_zip(saved, tmp_path / "bomb.zip", members={"policy.pth": (tmp_path / "inner.zip").read_bytes()})
    monkeypatch.setattr(weights, "MAX_MEMBER_BYTES", 10**5)
    with pytest.raises(TeacherError, match="policy.pth of .* holds more than 100000 bytes: refused"):
        read(bomb)
    monkeypatch.setattr("sb3_qpd.teachers.files.sb3_zip.MAX_DATA_BYTES", 100)
    with pytest.raises(TeacherError, match=r"data in .* has \d+ bytes, at most 100 are read: refused"):
        read(saved)


# --- other algorithms ---
def test_which_algorithm(tmp_path):
    path = tmp_path / "model.zip"
    A2C("MlpPolicy", "CartPole-v1").save(path)
    assert read(path).algo == "a2c"
    for algo in (CrossQ, DDPG, DQN, QRDQN, SAC, TD3, TQC):
        small = {"net_arch": [8]}
        algo(
            "MlpPolicy", "CartPole-v1" if "DQN" in algo.__name__ else "Pendulum-v1", buffer_size=10, policy_kwargs=small
        ).save(path)
        assert read(path).algo == algo.__name__.lower()
    for name, policy_class in (
        ("unknown", "stable_baselines3.unknown.policies.UnknownPolicy"),
        ("her", "stable_baselines3.her.Her"),
    ):
        module, _, kind = policy_class.rpartition(".")
        other = edit_zip(path, tmp_path / "other.zip", {"policy_class": serialized(f"c{module}\n{kind}\n.".encode())})
        with pytest.raises(TeacherError, match=f"another algorithm: {name} .*Supported: a2c, ars, "):
            read(other)


# --- vecnormalize.pkl ---
@pytest.fixture(scope="module")
def normalized() -> VecNormalize:
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0), clip_obs=5.0, epsilon=1e-6)
    env.reset()
    for _ in range(50):
        env.step(np.zeros((1, 1), np.float32))
    return env


@pytest.mark.parametrize("era", ["gymnasium", "gym"])
def test_statistics_are_read(normalized, tmp_path, era):
    path = tmp_path / "vecnormalize.pkl"
    normalized.save(path) if era == "gymnasium" else path.write_bytes(gym_era(normalized))
    statistics = read_vecnormalize(path)
    np.testing.assert_array_equal(statistics.mean, normalized.obs_rms.mean)
    np.testing.assert_array_equal(statistics.var, normalized.obs_rms.var)
    assert (statistics.epsilon, statistics.clip_obs) == (1e-6, 5.0)


def test_observations_that_were_not_normalized(tmp_path):
    VecNormalize(make_vec_env("Pendulum-v1"), norm_obs=False).save(tmp_path / "vecnormalize.pkl")
    assert read_vecnormalize(tmp_path / "vecnormalize.pkl") is None


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_statistics(tmp_path, attack):
    path, marker = tmp_path / "vecnormalize.pkl", tmp_path / "ran"
    path.write_bytes(ATTACKS[attack](f"touch {marker}"))
    try:
        VecNormalize.load(path, make_vec_env("Pendulum-v1"))
    except AttributeError:  # what comes out is no VecNormalize
        pass
    assert marker.exists()
    marker.unlink()
    with pytest.raises(TeacherError, match="(?s)vecnormalize.pkl was refused, without running it.*load it yourself"):
        read_vecnormalize(path)
    assert not marker.exists()


class _Encoded:
    """Bytes as protocol 2 writes them, of text that has no such bytes."""

    def __reduce__(self):
        return codecs.encode, ("\u20ac", "latin1")


class _Dtype:
    def __init__(self, order: str, code: str) -> None:
        self.order, self.code = order, code

    def __reduce__(self):
        return np.dtype, (self.code, False, True), (3, self.order, None, None, None, -1, -1, 0)


class _Reduced:
    """An array that numpy cannot make."""

    def __init__(self, dtype: str, shape: tuple[int, ...], raw: object = b"") -> None:
        self.arguments = (raw, _Dtype(dtype[0], dtype[1:]), shape, "C")

    def __reduce__(self):
        return np.zeros(1).__reduce_ex__(5)[0], self.arguments


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda env: vars(env.obs_rms).update(mean=np.full(3, np.nan)), "not finite numbers of one shape"),
        (lambda env: vars(env.obs_rms).update(var=np.ones(2)), r"not finite numbers of one shape \(\(3,\) and \(2,\)\)"),
        (lambda env: vars(env.obs_rms).update(var=-np.ones(3)), "not finite numbers"),
        (lambda env: vars(env.obs_rms).update(var=None), "Expected a numpy array, got NoneType"),
        (lambda env: vars(env).update(obs_rms={"a": 3}), "not those of observations"),
        (lambda env: vars(env).update(epsilon=0.0), "positive epsilon"),
        (lambda env: vars(env).update(clip_obs=np.inf), "one finite number"),
        (lambda env: vars(env).pop("clip_obs"), "It has no 'clip_obs'"),
        (lambda env: vars(env.obs_rms).update(mean=_Reduced("<bool", (1,))), "refused, without running it"),
        (lambda env: vars(env.obs_rms).update(mean=_Reduced("<f4", (0, *(2**30,) * 4))), "refused, without running it"),
        (lambda env: vars(env.obs_rms).update(mean=_Reduced("<f4", (1,), _Encoded())), "refused, without running it"),
    ],
)
def test_statistics_that_cannot_be(normalized, tmp_path, change, message):
    copied = pickle.loads(pickle.dumps(normalized))
    change(copied)
    state = copied.__dict__.copy()
    state.pop("venv")
    (tmp_path / "vecnormalize.pkl").write_bytes(_pickle_with_state(state))
    with pytest.raises(TeacherError, match=message):
        read_vecnormalize(tmp_path / "vecnormalize.pkl")


def _pickle_with_state(state: dict) -> bytes:
    """A VecNormalize with exactly these attributes, which its own ``__getstate__`` would not let through."""
    body = pickle.dumps(state, protocol=2)[2:-1]
    return b"\x80\x02cstable_baselines3.common.vec_env.vec_normalize\nVecNormalize\n)\x81" + body + b"b."


def test_not_statistics(tmp_path):
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps({"mean": 0}))
    with pytest.raises(TeacherError, match="It is not a VecNormalize"):
        read_vecnormalize(path)
    path.write_bytes(b"")
    with pytest.raises(TeacherError, match="Not a readable pickle"):
        read_vecnormalize(path)
    with pytest.raises(TeacherError, match="No such file: .*gone.pkl. Expected a vecnormalize.pkl"):
        read_vecnormalize(tmp_path / "gone.pkl")


# --- YAML ---
def test_zoo_yaml(tmp_path):
    path = tmp_path / "config.yml"
    written = OrderedDict(normalize=True, policy_kwargs="dict(net_arch=[8])", frame=(1, 2), wrappers=[{"a.B": {"k": 1}}])
    path.write_text(yaml.dump(written))
    assert "python/object/apply:collections.OrderedDict" in path.read_text()
    assert read_yaml(path) == dict(written)


def test_zoo_yaml_that_names_classes(tmp_path):
    """Names of classes, as RL Zoo writes them after ``-params policy_kwargs:"dict(activation_fn=nn.ReLU)"``, stay names."""
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump({"policy_kwargs": {"activation_fn": th.nn.ReLU}, "learning_rate": SimpleLinearSchedule(0.5)}))
    assert "!!python/name:torch.nn.modules.activation.ReLU ''" in path.read_text()
    kwargs = {"activation_fn": "torch.nn.modules.activation.ReLU"}
    assert read_yaml(path) == {"policy_kwargs": kwargs, "learning_rate": {"initial_value": 0.5}}
    path.write_text("a: !!python/name:os.system\nb: !!python/name:no.such.module [1]")
    assert read_yaml(path) == {"a": "os.system", "b": "no.such.module"}


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object:rl_zoo3.utils.SimpleLinearSchedule\n  b: !!python/object/apply:os.system ['{command}']",
        "!!python/object/apply:os.system ['{command}']",
        "a: !!python/object/apply:os.system ['{command}']",
        "a: !!python/object/new:os.system ['{command}']",
        "a: !!python/object/apply:subprocess.check_output [[sh, -c, '{command}']]",
        "!!python/object/apply:collections.OrderedDict\n- - - a\n    - !!python/object/apply:os.system ['{command}']",
    ],
)
def test_hostile_yaml(tmp_path, text):
    path, marker = tmp_path / "config.yml", tmp_path / "ran"
    path.write_text(text.format(command=f"touch {marker}"))
    yaml.load(path.read_text(), Loader=yaml.UnsafeLoader)  # what RL Zoo does
    assert marker.exists()
    marker.unlink()
    with pytest.raises(TeacherError, match="config.yml was refused, without running it: .*python/object"):
        read_yaml(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: !!python/module:os", "refused, without running it"),
        ("a: !!python/object:os.system {}", "refused, without running it"),
        ("a: !!python/object:rl_zoo3.utils.SimpleLinearSchedule 3", "refused, without running it"),
        ("x: " + "1:" * 200 + "1.", "refused, without running it"),
        ("a: [", "refused, without running it"),
        ("[" * 5000, "refused, without running it"),
        ("? [a]\n: b", "refused, without running it"),
        ("!!python/object/apply:collections.OrderedDict [[1]]", "refused, without running it"),
        ("a: \x00", "refused, without running it"),
        ("- a", "holds a list, expected a mapping"),
        ("", "holds a NoneType, expected a mapping"),
        ("a: " + "x" * 2**16, "at most 65536 are read"),
    ],
)
def test_yaml_that_is_not_a_configuration(tmp_path, text, message):
    (tmp_path / "args.yml").write_text(text)
    with pytest.raises(TeacherError, match=message):
        read_yaml(tmp_path / "args.yml")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_statistics_of_every_protocol(normalized, tmp_path, protocol):
    """Protocols 0 and 1 have another beginning, and another word for an object."""
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(normalized, protocol))
    statistics = read_vecnormalize(path)
    assert is_vecnormalize(path)
    np.testing.assert_array_equal(statistics.mean, normalized.obs_rms.mean)
    np.testing.assert_array_equal(statistics.var, normalized.obs_rms.var)


@pytest.mark.parametrize("base", ["(dp0\n", "c__builtin__\ndict\n"])
def test_an_object_that_is_made_of_another_one(tmp_path, base):
    """``_reconstructor`` may copy a value into an object: only a plain ``object`` is let through."""
    name = "cstable_baselines3.common.vec_env.vec_normalize\nVecNormalize\n"
    (tmp_path / "v.pkl").write_bytes(f"ccopy_reg\n_reconstructor\n({name}{base}Ntp1\nR.".encode())
    with pytest.raises(TeacherError, match="An object that is made of another one: refused"):
        read_vecnormalize(tmp_path / "v.pkl")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_whatever_sb3_keeps_beside_statistics(tmp_path, protocol):
    """Spaces of all kinds, seeded; the last observations; what an environment told at its last reset."""
    env = VecNormalize(make_vec_env("CartPole-v1"), norm_reward=False)
    env.reset()
    every = spaces.Dict(
        a=spaces.Text(3),
        b=spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
        c=spaces.Sequence(spaces.Discrete(3, start=1)),
        d=spaces.Tuple((spaces.MultiBinary([2, 2]), spaces.MultiDiscrete([2, 3], dtype=np.int32))),
        e=spaces.OneOf((spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float64))),
        f=spaces.Dict(g=spaces.Box(np.float16(0), np.float16(1), (1,), np.float16)),
        seed=3,
    )
    every.sample()
    env.action_space = every
    env.obs_keys, env.others = (
        {"a", "b"},
        [frozenset("x"), deque([1]), bytearray(b"x"), b"", defaultdict(int, a=1), 1j, range(3)],
    )
    env.others += [slice(1), np.dtype(">f4"), np.str_("x"), np.bool_(True), np.longlong(3), np.array(["x"])]
    env.generators = [np.random.RandomState(0), np.random.default_rng(0), np.random.SeedSequence(1), np.random.PCG64(1)]
    env.old_obs = OrderedDict(a=np.zeros(3))
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(env, protocol))
    statistics = read_vecnormalize(tmp_path / "v.pkl")
    np.testing.assert_array_equal(statistics.mean, env.obs_rms.mean)


def test_saved_without_the_schedules_that_no_longer_open(tmp_path):
    for algo in (PPO, TRPO, A2C):
        model = algo("MlpPolicy", "CartPole-v1", device="cpu")
        model.save(tmp_path / "model.zip", exclude=["clip_range", "clip_range_vf", "lr_schedule", "learning_rate"])
        assert read(tmp_path / "model.zip").algo == algo.__name__.lower()


def test_a_policy_class_that_is_pickled_as_code(saved, tmp_path):
    class Mine(ActorCriticPolicy):
        pass

    Mine.__module__ = "__main__"  # cloudpickle then takes its code along
    other = edit_zip(saved, tmp_path / "mine.zip", {"policy_class": serialized(cloudpickle.dumps(Mine))})
    with pytest.raises(TeacherError, match="carries a policy class of its own as code: refused without running it"):
        read(other)


# --- published files ---
def test_every_published_file_is_read(teachers):
    paths = sorted(teachers.rglob("*.zip"))
    assert len(paths) == 25
    for path in paths:
        assert read(path).algo in path.parts
    for path in teachers.rglob("vecnormalize.pkl"):
        statistics = read_vecnormalize(path)
        means = statistics.mean.values() if isinstance(statistics.mean, dict) else [statistics.mean]
        assert all(mean.dtype == np.float64 for mean in means) and statistics.epsilon == 1e-8
    for path in teachers.rglob("*.yml"):
        assert isinstance(read_yaml(path), dict)


@pytest.mark.parametrize(
    "text", ["a: &a {b: 1}\nc: {<<: *a}", "a: !!bool foo", "a: !!timestamp foo", "a: !!int ''", "? [1]\n: 2"]
)
def test_yaml_that_means_harm_or_nothing(text, tmp_path):
    path = tmp_path / "args.yml"
    path.write_text(text)
    with pytest.raises(TeacherError, match="refused"):
        read_yaml(path)
