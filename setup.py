from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# The lower bounds are facts, the tested set is constraints.txt.
REQUIRED = [
    # rl_zoo3 up to 2.9.0 asks for huggingface_sb3 >= 3, which was published under another name, sb3-team-hf-integration.
    # Never add `huggingface_sb3` here: that distribution overwrites the same folder and breaks `import rl_zoo3`.
    "rl-zoo3>=2.9.2,<3.0",
    "sb3-contrib>=2.9.2,<3.0",  # rl_zoo3 asks for the same release of all three
    "stable-baselines3>=2.9.2,<3.0",
    "torch>=2.8,<3.0",  # SB3's own bound; torch.load(weights_only=True) is safe since 2.6 (CVE-2025-32434)
    # vector environments with an autoreset mode, LunarLander-v3; classic-control and box2d: the README's own commands
    "gymnasium[classic-control]>=1.1.0,<2.0",
    "box2d>=2.3.10",  # a wheel: box2d-py, which gymnasium[box2d] asks for, needs a compiler
    "ale-py>=0.12.1",  # same-step autoreset and life_loss_info of the native vector environment
    "opencv-python-headless>=4.5",  # SB3's Atari preprocessing; the headless build needs no system libraries
    "cloudpickle>=1.6",
    "huggingface_hub>=2.0,<3.0",  # what rl_zoo3's sb3-team-hf-integration asks for as well
    "numpy>=1.26,<3.0",
    "jinja2>=3.1",  # the templates of the C export and of the page
    "matplotlib>=3.8",  # the figures of the page; seaborn brings it in any case
    "pyyaml>=6.0",
    "tqdm>=4.60",  # progress bars
    "rich>=10.0",
    # imported by rl_zoo3's programs without being declared: requests by enjoy and load_from_hub, seaborn by the plots,
    # pandas by -optimize (rl_zoo3's extra `plots` pins it below 3)
    "requests>=2.28",
    "pandas>=2.2,<3",
    "seaborn>=0.13",
]

EXTRAS = {
    "export": ["onnx>=1.20", "onnxruntime>=1.18"],  # onnx has UINT2 since 1.20
    "litert": ["ai-edge-litert>=1.0"],
    "frontier": ["optuna>=4.0"],  # the search for the smallest student
    "ray": ["ray>=2.40,<3"],  # frontier --ray, vec_env="ray"
    "docs": ["sphinx>=8.0", "myst-parser>=4.0", "furo>=2024.8", "sphinx-copybutton>=0.5"],  # make docs
    "minari": ["minari[hdf5]>=0.5"],  # recorded observations
    "film": ["imageio[ffmpeg]>=2.31"],  # `sb3-qpd push` shows the student as a video; without it a GIF
    "tests": [
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "ruff>=0.12",
        "mypy>=1.15",
        "import-linter>=2.3",  # the order of the folders
        "types-PyYAML",
        "emx-onnx-cgen>=1.4.0",  # an independent reader of the ONNX files
        "gymnasium[mujoco]",
        "gymnasium-robotics>=1.4",  # RL Zoo's teacher of FetchReach
        "pillow>=10.0",
        "shtab>=1.7",  # completion in shells
        "scipy>=1.11",  # an independent reference of statistics, for the benchmarks too
        "tensorboard>=2.9.1",
        "wandb>=0.17",  # RL Zoo's --track, offline
    ],
}
EXTRAS["tests"] += EXTRAS["film"] + EXTRAS["ray"] + EXTRAS["minari"]
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="sb3_qpd",
    version=(HERE / "sb3_qpd" / "version.txt").read_text(encoding="utf-8").strip(),
    description="Distill Stable-Baselines3 agents into tiny integer policies that play as well",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The sb3_qpd developers",
    license="MIT",
    keywords="reinforcement-learning policy-distillation quantization stable-baselines3 edge",
    # hyperparams/ stands beside the package, as in RL Zoo, and is installed inside it
    packages=[*find_packages(include=["sb3_qpd", "sb3_qpd.*"]), "sb3_qpd.hyperparams"],
    package_dir={"sb3_qpd.hyperparams": "hyperparams"},
    package_data={
        "sb3_qpd": ["py.typed", "version.txt"],
        "sb3_qpd.cli": ["demo_teacher.zip"],  # the teacher of sb3-qpd demo
        "sb3_qpd.export.c": ["templates/*"],
        "sb3_qpd.export.js": ["*.mjs"],
        "sb3_qpd.export.micropython": ["*.py.in"],
        "sb3_qpd.hyperparams": ["*.yml"],
        "sb3_qpd.pages": ["page.html.jinja", "page.css"],
        "sb3_qpd.publishing": ["card.md.jinja"],
    },
    python_requires=">=3.10",
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["sb3-qpd=sb3_qpd.__main__:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
