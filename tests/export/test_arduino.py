"""
The library folder of the target ``arduino``: arduino-lint's rules (numbers as in its documentation), the other systems'
manifests, and the sketch, built for an Arduino Uno with Arduino's own core and run.
"""

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from memory import episodes
from memory import make_policy as make_with_memory
from space_students import make_student as make_of_space
from students import BOX, DISCRETE, IMAGE, VECTOR, make_student

from sb3_qpd import QuantActorCriticPolicy
from sb3_qpd.cli import main
from sb3_qpd.export import export_arduino
from sb3_qpd.export.c.runtime import CPolicy, find_compiler, run_compiler
from sb3_qpd.export.c.vectors import c_observations
from sb3_qpd.integer import REQUANTIZATIONS
from sb3_qpd.student_folder import arduino_libraries

CORE = Path("/usr/share/arduino/hardware/arduino/avr")
UNO = ["-mmcu=atmega328p", "-DF_CPU=16000000L", "-DARDUINO=10819", "-DARDUINO_AVR_UNO", "-DARDUINO_ARCH_AVR", "-Os"]
CATEGORIES = ("Display", "Communication", "Signal Input/Output", "Sensors", "Device Control", "Timing", "Data Storage")


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="needs a C compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = make_student(VECTOR, DISCRETE, (4, 8))
    (folder,) = export_arduino(policy.to_integer(env={"env_id": "LunarLander-v3"}), tmp_path_factory.mktemp("libraries"))
    return folder


def properties(library: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (library / "library.properties").read_text().splitlines())


def test_structure_of_the_library(library):
    """LS001 to LS010, LD001 to LD005: names, sources, README, license and examples."""
    assert library.name == "LunarLanderPolicy" and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", library.name)
    assert {"src", "examples", "README.md", "LICENSE.txt", "keywords.txt"} <= {path.name for path in library.iterdir()}
    assert (library / "src" / "LunarLanderPolicy.h").is_file(), "LS008: a header with the library's name"
    files = [path for path in library.rglob("*") if path.is_file()]
    assert not [path for path in files if path.is_symlink() or path.suffix in (".exe", ".pde") or path.name[0] == "."]
    assert not list(library.glob("*.h")) + list(library.glob("*.c")), "sources lie in src"


def test_library_properties(library):
    """LP001 to LP061: required fields, their characters and lengths, known values."""
    about = properties(library)
    assert {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"} <= set(
        about
    )
    assert all(about.values()) and about["name"] == library.name
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,31}", about["name"]), "LP005, LP010, LP015: characters, length, no spaces"
    assert not re.search("arduino|library", about["name"], re.IGNORECASE), "LP013, LP014, LP016: no superfluous words"
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"]), "LP018: semver"
    assert "arduino" not in about["maintainer"].lower(), "LP024: official libraries only"
    assert about["sentence"] not in about["paragraph"], "LP032: the paragraph does not repeat the sentence"
    assert about["category"] in (*CATEGORIES, "Data Processing", "Other"), "LP035"
    assert re.fullmatch(r"https?://\S+", about["url"]), "LP038"
    assert about["architectures"] == "*" and (library / "src" / about["includes"]).is_file(), "LP043, LP051"


def test_the_sketch_has_its_name(library):
    """SS001 to SS003: the file has the folder's name, without other characters."""
    (sketch,) = (library / "examples").iterdir()
    assert (sketch / f"{sketch.name}.ino").is_file() and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", sketch.name)


def test_keywords_are_names_of_the_header(library):
    header = (library / "src" / "lunar_lander.h").read_text()
    rows = [line.split("\t") for line in (library / "keywords.txt").read_text().splitlines()]
    assert rows[0] == ["LunarLanderPolicy", "KEYWORD1"] and ["lunar_lander_act", "KEYWORD2"] in rows
    assert all(len(row) == 2 and row[0] in header for row in rows[1:])


def test_manifests_of_other_systems(library):
    """Every file that they name is there."""
    platformio = json.loads((library / "library.json").read_text())
    assert {"name", "version", "description", "keywords", "license"} <= set(platformio) and len(platformio["name"]) <= 50
    (example,) = platformio["examples"]
    assert all((library / example["base"] / file).is_file() for file in example["files"])
    assert (library / platformio["build"]["srcDir"] / platformio["headers"]).is_file()
    component = yaml.safe_load((library / "idf_component.yml").read_text())
    assert component["version"] == platformio["version"] and component["license"] == "MIT"
    registered = re.search(
        r'idf_component_register\(SRCS "(.*)" INCLUDE_DIRS "(.*)"\)', (library / "CMakeLists.txt").read_text()
    )
    assert registered and (library / registered[1]).is_file() and (library / registered[2]).is_dir()
    module = yaml.safe_load((library / "zephyr" / "module.yml").read_text())
    assert (library / module["build"]["cmake"] / "CMakeLists.txt").is_file() and (
        library / module["build"]["kconfig"]
    ).is_file()
    cmake = (library / "zephyr" / "CMakeLists.txt").read_text()
    (source,) = re.findall(r"zephyr_library_sources\((.*)\)", cmake)
    (option,) = re.findall(r"if\(CONFIG_(\w+)\)", cmake)
    assert (library / "zephyr" / source).is_file()
    assert f"config {option}\n" in (library / "zephyr" / "Kconfig").read_text()


def test_readme_has_bytes_and_ranges(library):
    readme = (library / "README.md").read_text()
    assert (
        "| feature | least | largest | step |" in readme
        and len(re.findall(r"^\| \d \| -?[\d.e+-]+ \|", readme, re.MULTILINE)) == 5
    )
    assert "| RAM: working memory of the layers (`LUNAR_LANDER_ARENA_BYTES`) |" in readme and "| flash: code, AVR |" in readme
    assert "Multiply-accumulates for one action" in readme and "main.c" not in readme


def test_ranges_are_the_ends_of_the_grid(library):
    model = make_student(VECTOR, DISCRETE, (4, 8)).to_integer()
    rows = re.findall(r"^\| \d \| (\S+) \| (\S+) \| \S+ \|", (library / "README.md").read_text(), re.MULTILINE)
    for column, end in ((0, -128), (1, 127)):
        np.testing.assert_array_equal(model.quantize_input(np.array([[float(row[column]) for row in rows]], np.float32)), end)


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        (None, "Policy"),
        ("ALE/Pong-v5", "PongPolicy"),
        ("my_envs:Tank-v0", "TankPolicy"),
        ("my_envs:farm/Tank_of_2-v0", "TankOf2Policy"),
        ("Arduino-v0", "Policy"),
        ("2048-v0", "Policy"),
        ("x" * 90, "X" + "x" * 25),
    ],
)
def test_names_of_libraries(env_id, name, tmp_path):
    model = make_student(VECTOR, DISCRETE).to_integer(env={"env_id": env_id})
    (folder,) = export_arduino(model, tmp_path)
    assert folder.name == (name if name.endswith("Policy") else name + "Policy")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "MyArduinoPolicy"}, "name must be letters and digits such as 'LunarLanderPolicy'"),
        ({"name": "Lander"}, "with Policy at the end"),
        ({"version": "1.0"}, "version must be three numbers such as '1.0.0', got '1.0'"),
        ({"author": "A\nname=x"}, "author must be one line of text"),
        ({"url": "no address"}, "url must be the address of a web page"),
    ],
)
def test_what_a_manifest_cannot_hold_is_refused(options, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        export_arduino(make_student(VECTOR, DISCRETE).to_integer(), tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_hostile_name_of_an_environment_ends_no_line(tmp_path):
    model = make_student(VECTOR, DISCRETE).to_integer(env={"env_id": 'x"\narchitectures=none\n*/ #error'})
    (folder,) = export_arduino(model, tmp_path)
    assert properties(folder)["architectures"] == "*"
    assert json.loads((folder / "library.json").read_text())["version"] == "1.0.0"
    assert yaml.safe_load((folder / "idf_component.yml").read_text())["license"] == "MIT"


def test_export_writes_the_folder_beside_other_files(tmp_path, capsys):
    make_student(VECTOR, DISCRETE).to_integer(env={"env_id": "CartPole-v1"}).save(tmp_path / "student.npz")
    for _ in range(2):  # the second time it replaces the first
        assert main(["export", str(tmp_path / "student.npz"), "--target", "arduino", "--out", str(tmp_path / "out")]) == 0
        size = sum(path.stat().st_size for path in (tmp_path / "out" / "CartPolePolicy").rglob("*") if path.is_file())
        assert f"{size:10}  {tmp_path / 'out' / 'CartPolePolicy'}" in capsys.readouterr().out
    model = make_student(VECTOR, DISCRETE).to_integer(env={"env_id": "CartPole-v1"})
    assert export_arduino(model, tmp_path / "out") == [tmp_path / "out" / "CartPolePolicy"]


def test_only_own_libraries_are_known(tmp_path):
    """A new run replaces the library of an earlier student, and no folder that holds something else."""
    for env_id in ("CartPole-v1", None, "ALE/Pong-v5"):
        space = IMAGE if env_id == "ALE/Pong-v5" else VECTOR
        export_arduino(make_student(space, DISCRETE).to_integer(env={"env_id": env_id}), tmp_path)
    assert arduino_libraries(tmp_path) == ["CartPolePolicy", "Policy", "PongPolicy"]
    (tmp_path / "CartPolePolicy" / "examples" / "Mine").mkdir()
    (tmp_path / "CartPolePolicy" / "examples" / "Mine" / "Mine.ino").touch()  # the user's
    (tmp_path / "Policy").rename(tmp_path / "OtherPolicy")
    (tmp_path / "LinkPolicy").symlink_to(tmp_path / "PongPolicy")
    (tmp_path / "EmptyPolicy").mkdir()
    assert arduino_libraries(tmp_path) == ["PongPolicy"] and arduino_libraries(tmp_path / "nowhere") == []
    (tmp_path / "PongPolicy" / "README.md").write_text("of another program")
    assert not arduino_libraries(tmp_path)


# -- built and run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arduino's core, compiled for an Uno."""
    missing = [tool for tool in ("avr-gcc", "avr-g++", "simavr") if shutil.which(tool) is None]
    if missing or not CORE.is_dir():
        pytest.skip(f"needs {', '.join(missing) or 'arduino-core-avr'}: make emulators")
    build = tmp_path_factory.mktemp("core")
    names = ("main.cpp", "HardwareSerial.cpp", "HardwareSerial0.cpp", "Print.cpp", "abi.cpp", "hooks.c", "wiring.c", "new.cpp")
    compile_for_uno([CORE / "cores" / "arduino" / name for name in names], build)
    return build


def compile_for_uno(sources: list[Path], build: Path, include: tuple[Path, ...] = ()) -> None:
    """Compile as Arduino does: C as gnu11, C++ as gnu++11."""
    folders = [f"-I{folder}" for folder in (CORE / "cores" / "arduino", CORE / "variants" / "standard", *include)]
    for source in sources:
        compiler = ["avr-gcc", "-std=gnu11"] if source.suffix == ".c" else ["avr-g++", "-std=gnu++11", "-fno-exceptions"]
        command = [*compiler, *UNO, "-ffunction-sections", *folders, "-c", source, "-o", build / f"{source.name}.o"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode and (CORE in source.parents or not done.stderr), done.stderr


def make_of_dict() -> QuantActorCriticPolicy:
    return make_of_space("Dict of vectors", "MultiDiscrete", 8, uses_masks=True)


# name of a test -> student and mode of its requantization
ON_UNO = {
    "discrete": (lambda: make_student(VECTOR, DISCRETE, (8, 8)), "float32"),
    "box": (lambda: make_student(VECTOR, BOX, (8, 8)), "fixed"),
    "Dict, masks": (make_of_dict, "float32"),
    "memory": (lambda: make_with_memory("discrete", 8), "float32"),
    "memory of actions": (lambda: make_with_memory("box", history_actions=True), "fixed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ON_UNO)
def test_the_sketch_runs_on_an_uno(kind, core, tmp_path):
    make, requantization = ON_UNO[kind]
    model = make().to_integer(env={"env_id": "LunarLander-v3"})
    model.requantization = requantization
    (library,) = export_arduino(model, tmp_path)
    sketch = library / "examples" / "LunarLander"
    (sketch / "sketch.cpp").write_text("#include <Arduino.h>\n" + (sketch / "LunarLander.ino").read_text())
    compile_for_uno([sketch / "sketch.cpp", sketch / "check.c", *(library / "src").glob("*.c")], tmp_path, (library / "src",))
    objects = [*core.glob("*.o"), *tmp_path.glob("*.o")]
    subprocess.run(["avr-g++", *UNO, "-Wl,--gc-sections", *objects, "-o", tmp_path / "sketch.elf"], check=True)
    size = subprocess.run(["avr-size", tmp_path / "sketch.elf"], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, size.splitlines()[1].split()[:3])
    assert text + data < 12_000 and data + bss < 1_000, "of 32 KiB and 2 KiB"
    command = ["simavr", "-m", "atmega328p", "-f", "16000000", tmp_path / "sketch.elf"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as simavr:
        assert simavr.stdout is not None
        line = next(line for line in simavr.stdout if "test vectors differ" in line)
        simavr.kill()
    assert re.search(r"(?<!\d)0 of the test vectors differ, microseconds: \d+", line)


@needs_compiler
@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize("observation", ["float image", "Dict", "MultiDiscrete"])
def test_the_check_of_the_sketch_takes_every_student(observation, requantization, tmp_path):
    """Action masks, Dict observations and images of floats, compiled for this computer."""
    model = make_of_space(observation, "MultiDiscrete", 8, uses_masks=True).to_integer(env={"env_id": "CartPole-v1"})
    model.requantization = requantization
    (library,) = export_arduino(model, tmp_path)
    readme = (library / "README.md").read_text()
    assert ("images need more memory" in readme) == (observation != "MultiDiscrete") and "Range of each" not in readme
    (tmp_path / "main.c").write_text("int count_differences(void);\nint main(void) { return count_differences(); }\n")
    sources = [tmp_path / "main.c", library / "examples" / "CartPole" / "check.c", library / "src" / "cart_pole.c"]
    run_compiler([*find_compiler(), "-Wall", "-Wextra", "-Werror", "-I", library / "src", *sources, "-o", tmp_path / "check"])
    assert subprocess.run([tmp_path / "check"]).returncode == 0


@needs_compiler
@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_a_library_remembers_until_it_is_reset(kind, requantization, tmp_path):
    """Whole episodes through the functions that a sketch calls."""
    model = make_with_memory(kind, history_actions=True).to_integer(env={"env_id": "CartPole-v1"})
    model.requantization = requantization
    (library,) = export_arduino(model, tmp_path)
    assert len(re.findall(r"^\| \d \| -?[\d.e+-]+ \|", (library / "README.md").read_text(), re.MULTILINE)) == model.n_features
    assert "cart_pole_reset\tKEYWORD2" in (library / "keywords.txt").read_text()
    assert "call cart_pole_reset at the start of each episode" in (library / "examples/CartPole/CartPole.ino").read_text()
    assert "Call `cart_pole_reset()` at the start of each episode" in (library / "README.md").read_text()
    c = CPolicy(library / "src", ("-O1",), "cart_pole", model=model).library
    action = np.zeros(model.action_shape or 1, np.int32 if requantization == "fixed" or not model.is_box else np.float32)
    state = None
    for observations, starts in episodes(kind, 40):
        one, before = observations[:1], model.remember(observations[:1], state, starts[:1])[0]
        if starts[0]:
            c.cart_pole_reset()
        given = c_observations(model, 1, one)
        assert c.cart_pole_act(given.ctypes.data_as(ctypes.c_void_p), action.ctypes.data_as(ctypes.c_void_p)) == 0
        acc = model.accumulators(one, before)
        in_units = model.is_box and requantization == "fixed"
        expected = np.clip(acc, *model.bounds_in_units()) if in_units else model.actions(acc)
        np.testing.assert_array_equal(action.reshape(-1), expected.reshape(-1))
        state = model.predict(one, (before,), deterministic=True)[1]


def test_images_are_for_larger_boards(tmp_path):
    (library,) = export_arduino(make_student(IMAGE, DISCRETE).to_integer(env={"env_id": "PongNoFrameskip-v4"}), tmp_path)
    assert "does not compile for AVR (Arduino Uno): images need more memory" in (library / "README.md").read_text()
    assert "Range of each feature" not in (library / "README.md").read_text()
