"""
The target ``arduino``: the C sources as a library folder for Arduino, PlatformIO, ESP-IDF and Zephyr.

The folder holds one copy of the C in ``src/``, and the few files by which each of these systems finds it.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from sb3_qpd.export.c.exporter import TEMPLATES, c_sources
from sb3_qpd.export.c.legend import plain
from sb3_qpd.export.c.text import rename
from sb3_qpd.export.c.vectors import some_observations
from sb3_qpd.export.files import write_files
from sb3_qpd.export.ranges import feature_ranges
from sb3_qpd.export.requirements import check_target
from sb3_qpd.integer import IntegerModel
from sb3_qpd.version import __version__

MAX_NAME = 32  # characters of a library's name that arduino-lint recommends at most
# numbers of observations that the sketch checks, which an Uno keeps in its RAM: vectors, images, and the most vectors for a
# student with a memory
N_VECTORS, N_IMAGES, MOST_VECTORS = 4, 1, 12


def export_arduino(
    model: IntegerModel,
    out_dir: Path,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    author: str = "The user of sb3_qpd",
    url: str = "https://stable-baselines3.readthedocs.io",
    n_frames: int | None = None,
) -> list[Path]:
    """
    Write a library folder, for example ``LunarLanderPolicy`` with the C files ``lunar_lander.h`` and ``lunar_lander.c``.

    :param model: the student
    :param out_dir: a folder that exists
    :param name: name of the library, which ends in ``Policy``. By default the environment's name is in front of that
    :param version: version of the library, such as ``1.0.0``
    :param author: author and maintainer of the library
    :param url: web page of the library; by default that of Stable-Baselines3
    :param n_frames: number of frames in an image observation, see :func:`~sb3_qpd.export.c.exporter.export_c`
    :return: the folder
    :raises ValueError: if C cannot take the student, or an argument does not fit
    """
    check_target("arduino", model)
    library = _library_name(model) if name is None else name
    _check_arguments(library, version, author, url)
    c_name = _c_name(library)
    files = _sources(model, library, c_name, n_frames)
    values = _values(model, library, c_name) | _about_c(files["README.md"])
    values |= {"version": version, "author": author, "url": url}
    sketch = f"examples/{values['sketch']}"
    for file, template in (("README.md", "library_README.md"), (f"{sketch}/{values['sketch']}.ino", "sketch.ino")):
        files[file] = rename(TEMPLATES.get_template(template).render(values), c_name)
    values["sketch_files"] = sorted(Path(file).name for file in files if file.startswith(sketch))
    files |= _manifests(values, files[f"src/{c_name}.h"])
    folder = out_dir / library
    for parent in {(folder / file).parent for file in files}:
        parent.mkdir(parents=True, exist_ok=True)
    write_files(folder, {file: text.encode() for file, text in files.items()})
    return [folder]


def _library_name(model: IntegerModel) -> str:
    """
    ``LunarLanderPolicy`` for ``LunarLander-v3``, without a module or namespace in front; ``Policy`` where the environment is
    unknown.
    """
    env = model.metadata.get("env")
    env_id = env.get("env_id") if isinstance(env, dict) else None
    own_name = re.split("[:/]", env_id)[-1] if isinstance(env_id, str) else ""
    words = re.findall(r"[A-Za-z0-9]+", re.sub(r"-v\d+$", "", own_name))
    name = "".join(word[:1].upper() + word[1:] for word in words)[: MAX_NAME - len("Policy")]
    is_reserved = re.search("arduino|library", name, re.IGNORECASE) is not None or name[:1].isdigit()
    return ("" if is_reserved else name) + "Policy"


def _c_name(library: str) -> str:
    """``lunar_lander`` for ``LunarLanderPolicy``."""
    stem = library.removesuffix("Policy") or "Policy"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem).lower()


def _check_arguments(library: str, version: str, author: str, url: str) -> None:
    """Refuse what arduino-lint's rules refuse."""
    pattern = r"[A-Z][A-Za-z0-9]*Policy|Policy"
    is_short = isinstance(library, str) and len(library) <= MAX_NAME
    if not is_short or not re.fullmatch(pattern, library) or re.search("arduino|library", library, re.IGNORECASE):
        raise ValueError(
            f"name must be letters and digits such as 'LunarLanderPolicy', with Policy at the end, at most {MAX_NAME} of them "
            f"and without Arduino and Library, got {library!r}"
        )
    if not isinstance(version, str) or not re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version):
        raise ValueError(f"version must be three numbers such as '1.0.0', got {version!r}")
    if not isinstance(author, str) or not author.isprintable() or not author or "arduino" in author.lower():
        raise ValueError(f"author must be one line of text without Arduino, got {author!r}")
    if not isinstance(url, str) or not re.fullmatch(r"https?://[^\s\"]+", url):
        raise ValueError(f"url must be the address of a web page, got {url!r}")


def _sources(model: IntegerModel, library: str, c_name: str, n_frames: int | None) -> dict[str, str]:
    """The files of the C export in their places, and its README."""
    n_vectors = N_VECTORS if model.history == 1 else min(model.history + 2, MOST_VECTORS)  # beyond the first window
    observations = some_observations(model, N_IMAGES if model.has_images else n_vectors)
    texts = c_sources(model, name=c_name, n_frames=n_frames, observations=observations)
    sketch = f"examples/{library.removesuffix('Policy') or 'Policy'}"
    vectors = next(name for name in texts if name.endswith("test_vectors.h"))
    main = next(name for name in texts if name.endswith("main.c"))
    return {
        f"src/{c_name}.h": texts[f"{c_name}.h"],
        f"src/{c_name}.c": texts[f"{c_name}.c"],
        f"src/{library}.h": f'/* The name by which Arduino finds the library. */\n#include "{c_name}.h"\n',
        f"{sketch}/{vectors}": texts[vectors],
        f"{sketch}/check.c": _check_function(texts[main]),
        "README.md": texts[f"{c_name}_README.md"],
    }


def _check_function(main: str) -> str:
    """The example of the C export as a function that a sketch calls: it returns the number of test vectors that differ."""
    body = main[main.index('#include "') :].replace("int main(void)", "int count_differences(void)")
    body = re.sub(r" *printf\(.*\n", "", body).replace("return wrong != 0;", "return wrong;")
    return "/* Computes the action of every test vector and compares it. */\n#include <string.h>\n\n" + body


def _values(model: IntegerModel, library: str, c_name: str) -> dict[str, Any]:
    """What the two templates and the manifests say of the student."""
    env = model.metadata.get("env")
    env_id = env.get("env_id") if isinstance(env, dict) else None
    of_env = f" for {plain(env_id)}" if isinstance(env_id, str) else ""
    return {
        "model": model,
        "library": library,
        "c_name": c_name,
        "sketch": library.removesuffix("Policy") or "Policy",
        "sentence": f"A trained policy{of_env} in {model.nbytes:,} bytes.",
        "paragraph": "Integers only between the layers, no heap. Each action has the bits of the student on a computer.",
        "features": _features(model),
        "package_version": __version__,
    }


def _about_c(readme: str) -> dict[str, str]:
    """The layers and the table of memory in the README of the C export."""
    layers = [line for line in readme.splitlines() if line.startswith("    ")]
    return {"c_layers": "\n".join(layers), "c_memory": readme[readme.index("| memory") :]}


def _features(model: IntegerModel) -> list[dict[str, float]]:
    """The range and the step of each feature of a vector on the input grid, in units of the environment."""
    if model.is_dict or model.parts[0].kind != "vector":
        return []
    return [{"low": low, "high": high, "step": (high - low) / 255} for low, high in feature_ranges(model)]


def _manifests(values: dict[str, Any], header: str) -> dict[str, str]:
    """The files by which Arduino, PlatformIO, ESP-IDF and Zephyr find the sources."""
    library, c_name, sketch = values["library"], values["c_name"], values["sketch"]
    about = {"name": library, "version": values["version"], "author": values["author"], "maintainer": values["author"]}
    about |= {"sentence": values["sentence"], "paragraph": values["paragraph"], "category": "Data Processing"}
    about |= {"url": values["url"], "architectures": "*", "includes": f"{library}.h"}
    platformio = {
        "name": library,
        "version": values["version"],
        "description": values["sentence"],
        "keywords": ["reinforcement learning", "neural network", "policy"],
        "license": "MIT",
        "homepage": values["url"],
        "frameworks": "*",
        "platforms": "*",
        "headers": f"{library}.h",
        "examples": [{"name": sketch, "base": f"examples/{sketch}", "files": values["sketch_files"]}],
        "build": {"srcDir": "src"},
    }
    option = c_name.upper() + "_POLICY"
    return {
        "library.properties": "".join(f"{key}={value}\n" for key, value in about.items()),
        "keywords.txt": _keywords(library, header),
        "library.json": json.dumps(platformio, indent=2) + "\n",
        "CMakeLists.txt": f'# a component of ESP-IDF\nidf_component_register(SRCS "src/{c_name}.c" INCLUDE_DIRS "src")\n',
        "idf_component.yml": f'version: "{values["version"]}"\ndescription: "{values["sentence"]}"\nlicense: "MIT"\n'
        f'url: "{values["url"]}"\n',
        "zephyr/module.yml": f"name: {c_name}_policy\nbuild:\n  cmake: zephyr\n  kconfig: zephyr/Kconfig\n",
        "zephyr/CMakeLists.txt": f"if(CONFIG_{option})\n  zephyr_include_directories(../src)\n  zephyr_library()\n"
        f"  zephyr_library_sources(../src/{c_name}.c)\nendif()\n",
        "zephyr/Kconfig": f'config {option}\n\tbool "{values["sentence"]}"\n',
        "LICENSE.txt": (resources.files("sb3_qpd.export.c") / "templates" / "LICENSE.txt").read_text(encoding="utf-8"),
    }


def _keywords(library: str, header: str) -> str:
    """Names that Arduino's editor colours: the library, its functions and its constants."""
    functions = sorted(set(re.findall(r"^int ([a-z]\w*)\(|^void ([a-z]\w*)\(", header, re.MULTILINE)))
    macros = sorted(set(re.findall(r"^#define ([A-Z]\w*) ", header, re.MULTILINE)))
    lines = [f"{library}\tKEYWORD1", *(f"{one or other}\tKEYWORD2" for one, other in functions)]
    return "\n".join([*lines, *(f"{macro}\tLITERAL1" for macro in macros)]) + "\n"
